// The tests' own small framework: named functions, and checks that end the function they fail in.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace coe::tests {

// Deliberately no std::exception, lest a check for one swallow it.
struct CheckFailed {
    std::string text;
};

struct Test {
    const char* name;
    void (*body)();
};

inline std::vector<Test>& all_tests() {
    static std::vector<Test> tests;
    return tests;
}

struct Registration {
    Registration(const char* name, void (*body)()) { all_tests().push_back({name, body}); }
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
    std::ostringstream text;
    text << file << ":" << line << ": " << what;
    throw CheckFailed{text.str()};
}

template <typename Actual, typename Expected>
void check_equal(const Actual& actual, const Expected& expected, const char* file, int line,
                 const char* expression) {
    if (!(actual == expected)) {
        std::ostringstream text;
        text << expression << " is " << actual << ", not " << expected;
        fail(file, line, text.str());
    }
}

// Runs `body`, which must throw an `Exception` (or one derived from it) whose text has `part` in it.
template <typename Exception, typename Body>
void check_throws(Body body, const std::string& part, const char* file, int line, const char* expression) {
    try {
        body();
    } catch (const Exception& exception) {
        if (std::string(exception.what()).find(part) == std::string::npos) {
            fail(file, line, std::string(expression) + " says \"" + exception.what() + "\", not " + part);
        }
        return;
    } catch (const std::exception& exception) {
        fail(file, line, std::string(expression) + " throws something else: " + exception.what());
    }
    fail(file, line, std::string(expression) + " does not throw");
}

}  // namespace coe::tests

#define TEST(name)                                                        \
    static void name();                                                   \
    static const coe::tests::Registration name##_registered(#name, name); \
    static void name()

#define CHECK(condition)                                                  \
    do {                                                                  \
        if (!(condition)) {                                               \
            coe::tests::fail(__FILE__, __LINE__, #condition " is false"); \
        }                                                                 \
    } while (false)

#define CHECK_EQUAL(actual, expected) \
    coe::tests::check_equal((actual), (expected), __FILE__, __LINE__, #actual)

#define CHECK_THROWS(exception, part, expression) \
    coe::tests::check_throws<exception>([&] { (void)(expression); }, (part), __FILE__, __LINE__, #expression)
