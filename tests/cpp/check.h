// A test runner small enough to need no package: TEST(name) { CHECK(...); }, and exit code 1 where a check failed.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <vector>

namespace aegis::test {

struct Case {
  const char* name;
  void (*run)();
};
inline std::vector<Case> cases;
inline int failures = 0;
inline char context[256] = "";

// What the checks that follow are about (instruction set, shape): printed where one fails.
__attribute__((format(printf, 1, 2))) inline void about(const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::vsnprintf(context, sizeof context, format, args);
  va_end(args);
}

inline void failed(const char* file, int line, const char* what) {
  if (++failures <= 20) std::printf("  %s:%d: %s [%s]\n", file, line, what, context);
}

struct Registration {
  Registration(const char* name, void (*run)()) { cases.push_back({name, run}); }
};

}  // namespace aegis::test

#define TEST(name)                                                     \
  static void name();                                                  \
  static const aegis::test::Registration register_##name{#name, name}; \
  static void name()

#define CHECK(condition) ((condition) ? void() : aegis::test::failed(__FILE__, __LINE__, #condition))

// The expression throws `type`, with `part` in its message.
#define CHECK_THROWS(expression, type, part)                                                               \
  try {                                                                                                    \
    expression;                                                                                            \
    aegis::test::failed(__FILE__, __LINE__, #expression " did not throw");                                 \
  } catch (const type& error) {                                                                            \
    if (std::strstr(error.what(), part) == nullptr) aegis::test::failed(__FILE__, __LINE__, error.what()); \
  }
