// Runs every test of the executable, or those whose name contains the first argument.
#include "check.h"

int main(int argc, char** argv) {
  using namespace aegis::test;
  int run = 0;
  for (const Case& c : cases) {
    if (argc > 1 && std::strstr(c.name, argv[1]) == nullptr) continue;
    const int before = failures;
    about("%s", "");
    c.run();
    ++run;
    std::printf("%s %s\n", failures == before ? "ok  " : "FAIL", c.name);
    std::fflush(stdout);
  }
  if (failures != 0) std::printf("%d checks failed\n", failures);
  return failures != 0 || run == 0 ? 1 : 0;
}
