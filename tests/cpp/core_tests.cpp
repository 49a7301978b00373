// Runs all tests, or those whose name contains the argument.
#include <cstdio>
#include <cstring>
#include <exception>

#include "check.h"

int main(int n_arguments, char** arguments) {
    const char* wanted = n_arguments > 1 ? arguments[1] : "";
    int n_passed = 0;
    int n_failed = 0;
    for (const coe::tests::Test& test : coe::tests::all_tests()) {
        if (std::strstr(test.name, wanted) == nullptr) {
            continue;
        }
        std::string reason;
        try {
            test.body();
        } catch (const coe::tests::CheckFailed& failure) {
            reason = failure.text;
        } catch (const std::exception& exception) {
            reason = std::string("it threw: ") + exception.what();
        }
        std::printf("%s %s\n", reason.empty() ? "ok    " : "FAILED", test.name);
        if (!reason.empty()) {
            std::printf("       %s\n", reason.c_str());
        }
        ++(reason.empty() ? n_passed : n_failed);
    }
    std::printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed > 0 || n_passed == 0 ? 1 : 0;
}
