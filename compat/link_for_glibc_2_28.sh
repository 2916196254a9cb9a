#!/bin/sh
# The linker of `make wheels`: zig's, which knows the symbols of glibc 2.28 whatever this machine has, so that the wheel
# is manylinux_2_28. zig would bring an unwinder and a C++ library of its own, static; torch has the system's. The OpenMP
# that rustc hands on is torch's business.
for word do
  shift
  case $word in
    -lgomp) ;;
    -lgcc_s) set -- "$@" "$(c++ -print-file-name=libgcc_s.so.1)" ;;
    *) set -- "$@" "$word" ;;
  esac
done
# The libraries of this machine ask for its newer glibc themselves; those of the user's will ask for theirs.
exec python -m ziglang cc -target "$(uname -m)-linux-gnu.2.28" -Wl,--allow-shlib-undefined "$@" \
  "$(c++ -print-file-name=libstdc++.so)"
