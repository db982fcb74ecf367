/* Loads kernels that `aegis-edge compile` wrote, through the CUDA driver API: no Triton, no CUDA toolkit, no Python.

   cc -o launch launch.c -ldl && ./launch DIR/sm_87      loads every kernel and tells its registers

   As a library: compile with -DAEGIS_NO_MAIN; aegis_open, aegis_load, aegis_launch. `kernels.txt` has a line a
   kernel: name, entry, threads, shared bytes, and its arguments in order: p a pointer, i int32, f float32.
   Sizes and multiples that the arguments must keep to are in manifest.json. Not run on a GPU yet. */

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ARGUMENTS = 32, MAX_PATH = 4096, SCRATCH_POINTERS = 2, PLAIN_SHARED = 48 << 10 };

/* Of cuda.h; the numbers are part of the driver's ABI. */
enum { FUNC_REGISTERS = 4, FUNC_MAX_SHARED = 8 };
typedef int CUresult;

/* The driver's functions, in the order of `names` below. */
typedef struct {
  CUresult (*init)(unsigned);
  CUresult (*device_get)(int*, int);
  CUresult (*retain)(void**, int);
  CUresult (*set_current)(void*);
  CUresult (*load)(void**, const void*);
  CUresult (*get_function)(void**, void*, const char*);
  CUresult (*get_attribute)(int*, int, void*);
  CUresult (*set_attribute)(void*, int, int);
  CUresult (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                     void**);
  CUresult (*error)(CUresult, const char**);
} Driver;

typedef struct {
  char name[64], entry[64], arguments[MAX_ARGUMENTS + 1]; /* arguments: a letter each */
  unsigned threads, shared;
  void* function;
} Kernel;

typedef union { /* one argument, as its letter says */
  uint64_t p;
  int32_t i;
  float f;
} Value;

static Driver driver;

static int failed(const char* what, CUresult code) {
  const char* text = NULL;
  if (code == 0) return 0;
  if (driver.error != NULL) driver.error(code, &text);
  fprintf(stderr, "error: %s: %s (%d)\n", what, text != NULL ? text : "unknown", code);
  return 1;
}

/* The driver, and the primary context of a device made current. 0, or 1 with a line on standard error. */
int aegis_open(int device) {
  static const char* const names[] = {
      "cuInit",           "cuDeviceGet",         "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent",
      "cuModuleLoadData", "cuModuleGetFunction", "cuFuncGetAttribute",       "cuFuncSetAttribute",
      "cuLaunchKernel",   "cuGetErrorString"};
  void* found[sizeof names / sizeof *names];
  void *context = NULL, *library = dlopen("libcuda.so.1", RTLD_NOW);
  int handle = 0;
  _Static_assert(sizeof found == sizeof driver, "a name for every function");
  if (library == NULL) {
    fprintf(stderr, "error: no NVIDIA driver: %s\nhint: nvidia-smi tells whether one is installed\n", dlerror());
    return 1;
  }
  for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
    found[n] = dlsym(library, names[n]);
    if (found[n] == NULL) {
      fprintf(stderr, "error: the NVIDIA driver has no %s\n", names[n]);
      return 1;
    }
  }
  memcpy(&driver, found, sizeof driver); /* POSIX lets a function's address stand in a void * */
  return failed("cuInit", driver.init(0)) || failed("cuDeviceGet", driver.device_get(&handle, device)) ||
         failed("cuDevicePrimaryCtxRetain", driver.retain(&context, handle)) ||
         failed("cuCtxSetCurrent", driver.set_current(context));
}

static void* read_file(const char* path) {
  FILE* file = fopen(path, "rb");
  long size = -1;
  char* data = NULL;
  if (file != NULL && fseek(file, 0, SEEK_END) == 0) size = ftell(file);
  if (size > 0 && fseek(file, 0, SEEK_SET) == 0) data = malloc((size_t)size);
  if (data != NULL && fread(data, 1, (size_t)size, file) != (size_t)size) {
    free(data);
    data = NULL;
  }
  if (file != NULL) fclose(file);
  if (data == NULL) fprintf(stderr, "error: %s can not be read\n", path);
  return data;
}

/* The cubin of a kernel, whose other fields are filled, from `folder`. 0, or 1 with a line on standard error. */
int aegis_load(const char* folder, Kernel* kernel) {
  char path[MAX_PATH];
  void *module = NULL, *data;
  int bad, length = snprintf(path, sizeof path, "%s/%s.cubin", folder, kernel->name);
  if (length < 0 || (size_t)length >= sizeof path) {
    fprintf(stderr, "error: the path of %s is too long\n", kernel->name);
    return 1;
  }
  data = read_file(path);
  if (data == NULL) return 1;
  bad = failed(path, driver.load(&module, data)) ||
        failed(kernel->entry, driver.get_function(&kernel->function, module, kernel->entry));
  free(data);                                /* the driver has made a copy */
  if (!bad && kernel->shared > PLAIN_SHARED) /* more than this is given only where it is asked for */
    bad = failed(kernel->name, driver.set_attribute(kernel->function, FUNC_MAX_SHARED, (int)kernel->shared));
  return bad;
}

/* Start a kernel: a value for each letter of its arguments. 0, or 1 with a line on standard error. */
int aegis_launch(const Kernel* kernel, const unsigned grid[3], Value* values, void* stream) {
  void* pointers[MAX_ARGUMENTS + SCRATCH_POINTERS];
  uint64_t nothing = 0;
  size_t n = 0, count = strlen(kernel->arguments);
  for (; n < count; n++) pointers[n] = &values[n];
  for (; n < count + SCRATCH_POINTERS; n++) pointers[n] = &nothing;
  return failed(kernel->name, driver.launch(kernel->function, grid[0], grid[1], grid[2], kernel->threads, 1, 1,
                                            kernel->shared, stream, pointers, NULL));
}

/* The next kernel of an open kernels.txt: 1, 0 at its end, -1 with a line on standard error. */
int aegis_next(FILE* list, Kernel* kernel) {
  int fields;
  memset(kernel, 0, sizeof *kernel);
  fields = fscanf(list, "%63s %63s %u %u %32[pif]", kernel->name, kernel->entry, &kernel->threads, &kernel->shared,
                  kernel->arguments);
  if (fields == 5) return 1;
  if (fields == EOF && !ferror(list)) return 0;
  fprintf(stderr, "error: kernels.txt is damaged\n");
  return -1;
}

#ifndef AEGIS_NO_MAIN
int main(int count, char** arguments) {
  char path[MAX_PATH];
  Kernel kernel;
  FILE* list;
  int more, registers = 0;
  if (count != 2) {
    fprintf(stderr, "error: expected one folder\nhint: launch DIR/sm_87, as aegis-edge compile wrote it\n");
    return 2;
  }
  snprintf(path, sizeof path, "%s/kernels.txt", arguments[1]);
  list = fopen(path, "r");
  if (list == NULL) {
    fprintf(stderr, "error: %s can not be read\nhint: make it with aegis-edge compile\n", path);
    return 3;
  }
  if (aegis_open(0)) {
    fclose(list);
    return 3;
  }
  while ((more = aegis_next(list, &kernel)) == 1) {
    if (aegis_load(arguments[1], &kernel) ||
        failed(kernel.name, driver.get_attribute(&registers, FUNC_REGISTERS, kernel.function))) {
      more = -1;
      break;
    }
    printf("%s: %u threads, %d registers, %u bytes shared\n", kernel.name, kernel.threads, registers, kernel.shared);
  }
  fclose(list);
  return more == 0 ? 0 : 3;
}
#endif
