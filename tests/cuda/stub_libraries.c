/* Stands in for libcuda, libnvrtc and libtorch_cuda in one process: every call is recorded, and the n-th fails if asked.
 * To be preloaded: batchformer's extension finds no library that `absent` names, and this one for the others. What else
 * the process asks dlopen and dlsym for goes on as if called from there: a tail call leaves the caller's address, which
 * both look at. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef __x86_64__
#define FIRST_GLIBC "GLIBC_2.2.5"
#else
#define FIRST_GLIBC "GLIBC_2.17"
#endif

static char record[1 << 20];
static size_t written;
static int calls, fail_at = -1, capturing, silent, real_compiler, compile_milliseconds, missing_function;
static char absent[256]; /* names; without a space one is the beginning of another */
static int sizes[64], size_count; /* bytes of each parameter of the kernel to come */
static __thread void *contexts[8];
static __thread int depth;
static int context_of_device[2], module, function, program;

void stub_clear(void) { written = 0; record[0] = 0; calls = 0; }
const char *stub_record(void) { return record; }
int stub_calls(void) { return calls; }
void stub_fail_at(int call) { fail_at = call; }
void stub_absent(const char *names) { snprintf(absent, sizeof absent, "%s", names); }
void stub_capturing(int on) { capturing = on; }
void stub_silent(int on) { silent = on; }
void stub_real_compiler(int on) { real_compiler = on; }
void stub_compile_milliseconds(int milliseconds) { compile_milliseconds = milliseconds; }
void stub_missing_function(int on) { missing_function = on; }
void stub_sizes(int count, const int *bytes) { size_count = count; memcpy(sizes, bytes, count * sizeof(int)); }
void stub_make_current(int device) { depth = 1; contexts[0] = &context_of_device[device]; }

/* Whether this call is to fail. */
static int failing(const char *format, ...) {
  static int writing; /* several threads launch at once */
  if (silent) return 0;
  while (__atomic_exchange_n(&writing, 1, __ATOMIC_ACQUIRE)) {}
  va_list arguments;
  va_start(arguments, format);
  written += vsnprintf(record + written, sizeof record - written, format, arguments);
  va_end(arguments);
  written += snprintf(record + written, sizeof record - written, "\n");
  int call = calls++;
  __atomic_store_n(&writing, 0, __ATOMIC_RELEASE);
  return call == fail_at;
}
#define CALL(...) do { if (failing(__VA_ARGS__)) return 700; } while (0)
#define COMPILE(status, ...) do { if (failing(__VA_ARGS__)) return status; } while (0)

/* the driver */
static int device_of(void *context) { return (int)((int *)context - context_of_device); }
int stub_cuInit(unsigned flags) { CALL("cuInit %u", flags); return 0; }
int stub_cuDriverGetVersion(int *version) { CALL("cuDriverGetVersion"); *version = 13020; return 0; }
int stub_cuGetErrorString(int status, const char **text) {
  *text = status == 700 ? "the stub was told to fail" : NULL;
  return *text ? 0 : 1;
}
int stub_cuDeviceGetCount(int *count) { CALL("cuDeviceGetCount"); *count = 2; return 0; }
int stub_cuDeviceGet(int *device, int index) { CALL("cuDeviceGet %d", index); *device = index + 100; return 0; }
int stub_cuDeviceGetAttribute(int *value, int attribute, int device) {
  CALL("cuDeviceGetAttribute %d %d", attribute, device);
  *value = attribute == 75 ? 9 : attribute == 76 ? 0 : -1;
  return 0;
}
int stub_cuDevicePrimaryCtxRetain(void **context, int device) {
  CALL("cuDevicePrimaryCtxRetain %d", device);
  *context = &context_of_device[device - 100];
  return 0;
}
int stub_cuCtxGetCurrent(void **context) {
  CALL("cuCtxGetCurrent");
  *context = depth ? contexts[depth - 1] : NULL;
  return 0;
}
int stub_cuCtxPushCurrent_v2(void *context) {
  CALL("cuCtxPushCurrent %d", device_of(context));
  contexts[depth++] = context;
  return 0;
}
int stub_cuCtxPopCurrent_v2(void **context) {
  *context = contexts[--depth];
  CALL("cuCtxPopCurrent");
  return 0;
}
int stub_cuStreamIsCapturing(void *stream, int *status) {
  CALL("cuStreamIsCapturing %p", stream);
  *status = capturing;
  return 0;
}
int stub_cuModuleLoadData(void **loaded, const void *image) {
  CALL("cuModuleLoadData %.4s", memcmp(image, "\177ELF", 4) ? (const char *)image : "elf");
  *loaded = &module;
  return 0;
}
int stub_cuModuleGetFunction(void **found, void *in, const char *name) {
  CALL("cuModuleGetFunction %s", name);
  *found = in == &module ? &function : NULL;
  return 0;
}
int stub_cuFuncLoad(void *loaded) { CALL("cuFuncLoad %d", loaded == &function); return 0; }
int stub_cuFuncSetAttribute(void *changed, int attribute, int value) {
  CALL("cuFuncSetAttribute %d %d %d", changed == &function, attribute, value);
  return 0;
}
int stub_cuLaunchKernel(void *launched, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void *stream, void **parameters, void **extra) {
  if (silent) return 0;
  char values[4096] = "";
  size_t at = 0;
  for (int i = 0; i < size_count; i++) {
    at += snprintf(values + at, sizeof values - at, " ");
    for (int byte = 0; byte < sizes[i]; byte++)
      at += snprintf(values + at, sizeof values - at, "%02x", ((unsigned char *)parameters[i])[byte]);
  }
  CALL("cuLaunchKernel %d grid %u %u %u block %u %u %u shared %u stream %p device %d extra %d%s", launched == &function,
       x, y, z, block_x, block_y, block_z, shared, stream, depth ? device_of(contexts[depth - 1]) : -1, extra != NULL,
       values);
  return 0;
}

/* the compiler: a module is ELF's first four bytes and the options */
static char compiled[4096];
int stub_nvrtcVersion(int *major, int *minor) { COMPILE(1, "nvrtcVersion"); *major = 13; *minor = 9; return 0; }
const char *stub_nvrtcGetErrorString(int status) { return status == 1 ? "the stub was told to fail" : NULL; }
int stub_nvrtcCreateProgram(void **made, const char *text, const char *name, int headers, const char **h, const char **n) {
  COMPILE(1, "nvrtcCreateProgram %s %d %d", name, strncmp(text, "#line 1 \"prelude.cu\"\n", 21) == 0, headers);
  *made = &program;
  return 0;
}
int stub_nvrtcDestroyProgram(void **destroyed) { COMPILE(1, "nvrtcDestroyProgram %d", *destroyed == &program); return 0; }
int stub_nvrtcCompileProgram(void *in, int count, const char **options) {
  size_t at = snprintf(compiled, sizeof compiled, "\177ELF");
  for (int i = 0; i < count; i++) at += snprintf(compiled + at, sizeof compiled - at, " %s", options[i]);
  nanosleep(&(struct timespec){compile_milliseconds / 1000, compile_milliseconds % 1000 * 1000000L}, NULL);
  COMPILE(6, "nvrtcCompileProgram%s", compiled + 4);
  return 0;
}
static const char log_of_compiler[] = "norm.cu(7): error: the stub was told to fail\n";
int stub_nvrtcGetProgramLogSize(void *in, size_t *size) { COMPILE(1, "nvrtcGetProgramLogSize"); *size = sizeof log_of_compiler; return 0; }
int stub_nvrtcGetProgramLog(void *in, char *text) { COMPILE(1, "nvrtcGetProgramLog"); strcpy(text, log_of_compiler); return 0; }
int stub_nvrtcGetCUBINSize(void *in, size_t *size) { COMPILE(1, "nvrtcGetCUBINSize"); *size = strlen(compiled); return 0; }
int stub_nvrtcGetCUBIN(void *in, char *bytes) { COMPILE(1, "nvrtcGetCUBIN"); memcpy(bytes, compiled, strlen(compiled)); return 0; }

/* torch: streams 0x1000 and 0x1001 */
int stub_aoti_torch_get_current_cuda_stream(int device, void **stream) {
  COMPILE(1, "aoti_torch_get_current_cuda_stream %d", device);
  *stream = (void *)(intptr_t)(0x1000 + device);
  return 0;
}

/* the loader */
static int self;
static int is_ours(const char *name) {
  return name && (!strncmp(name, "libcuda.so", 10) || (!strncmp(name, "libnvrtc.so", 11) && !real_compiler) ||
                  !strcmp(name, "libtorch_cuda.so"));
}
void *dlopen(const char *name, int flags) {
  static void *(*next)(const char *, int);
  if (!next) next = dlvsym(RTLD_NEXT, "dlopen", FIRST_GLIBC);
  Dl_info caller;
  if (is_ours(name) && dladdr(__builtin_return_address(0), &caller) && strstr(caller.dli_fname, "_core."))
    return strstr(absent, name) ? NULL : &self;
  return next(name, flags);
}
void *dlsym(void *handle, const char *name) {
  static void *(*next)(void *, const char *);
  if (!next) next = dlvsym(RTLD_NEXT, "dlsym", FIRST_GLIBC);
  if (handle == &self && missing_function && strstr(name, "IsCapturing")) return NULL;
  if (handle == &self) {
    char ours[128];
    snprintf(ours, sizeof ours, "stub_%s", name); /* by their own names they would stand in for the real ones' */
    return next(RTLD_DEFAULT, ours);
  }
  return next(handle, name);
}
