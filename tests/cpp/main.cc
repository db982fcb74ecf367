// Runs every test of the executable, or those whose name contains the first argument.
#include <chrono>

#include "check.h"

int main(int argc, char** argv) {
  using namespace aegis::test;
  int run = 0;
  for (const Case& c : cases) {
    if (argc > 1 && std::strstr(c.name, argv[1]) == nullptr) continue;
    const int before = failures;
    about("%s", "");
    const auto start = std::chrono::steady_clock::now();
    c.run();
    ++run;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%s %s %.2f s\n", failures == before ? "ok  " : "FAIL", c.name, seconds);
    std::fflush(stdout);
  }
  if (failures != 0) std::printf("%d checks failed\n", failures);
  return failures != 0 || run == 0 ? 1 : 0;
}
