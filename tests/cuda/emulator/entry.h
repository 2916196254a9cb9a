// Stands behind a source: what the launcher has to know of each kernel, and a way to call it.
//
// Nothing here is instrumented: the arguments lie in the launcher's memory, which is no argument of a kernel.

template <int... I>
struct Places {};
template <class... A, int... I>
__attribute__((no_sanitize("thread"))) static void emulator_call(void (*kernel)(A...), void **arguments, Places<I...>) {
  kernel(*(A *)arguments[I]...);
}
template <class... A>
__attribute__((no_sanitize("thread"))) static void emulator_call(void (*kernel)(A...), void **arguments) {
  emulator_call(kernel, arguments, Places<__integer_pack(sizeof...(A))...>());
}

// bytes of the argument; for a pointer also the letter of its element's type, in upper case if it is constant.
struct Parameter {
  int bytes;
  char element;
};
template <class T> struct Letter { static const char is = '?'; };
template <> struct Letter<bf16> { static const char is = 'b'; };
template <> struct Letter<f16> { static const char is = 'h'; };
template <> struct Letter<float> { static const char is = 'f'; };
template <> struct Letter<i64> { static const char is = 'q'; };
template <class A> struct Parameter_of { static constexpr Parameter is = {sizeof(A), ' '}; };
template <class T> struct Parameter_of<T *> { static constexpr Parameter is = {8, Letter<T>::is}; };
template <class T> struct Parameter_of<const T *> {
  static constexpr Parameter is = {8, (char)(Letter<T>::is == '?' ? '!' : Letter<T>::is - 32)};
};
template <class... A>
__attribute__((no_sanitize("thread"))) static int emulator_parameters(void (*)(A...), Parameter *out) {
  const Parameter all[] = {Parameter_of<A>::is...};
  for (unsigned i = 0; i < sizeof...(A); i++) out[i] = all[i];
  return sizeof...(A);
}
// Where the library begins and ends.
extern char __ehdr_start __attribute__((visibility("hidden")));
extern char _end __attribute__((visibility("hidden")));
extern "C" const char *const emulator_library[2] = {&__ehdr_start, &_end};
// Threads a block may have: the first number of __launch_bounds__.
static constexpr int emulator_most(int threads = 1024, int = 0) { return threads; }

#define KERNEL(NAME, ...)                                                                                    \
  extern "C" __attribute__((no_sanitize("thread"))) void emulator_call_##NAME(void **arguments) {            \
    emulator_call(NAME, arguments);                                                                          \
  }                                                                                                          \
  extern "C" int emulator_parameters_##NAME(Parameter *out) { return emulator_parameters(NAME, out); }       \
  extern "C" int emulator_most_##NAME() { return emulator_most(__VA_ARGS__); }
