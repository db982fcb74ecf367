# Cross-compiling for 64-bit ARM with Debian's g++-aarch64-linux-gnu; ctest then runs each test under qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
# -cpu max has every extension that qemu knows; AEGIS_QEMU_CPU=cortex-a76 has dotprod without bf16, cortex-a72 neither.
set(AEGIS_QEMU_CPU max CACHE STRING "CPU model that qemu-user pretends to be")
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -cpu ${AEGIS_QEMU_CPU} -L /usr/aarch64-linux-gnu)
