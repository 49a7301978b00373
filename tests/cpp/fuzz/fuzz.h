// What must hold whatever the input: a fuzzer sees a violation as a crash.
#pragma once

#include <cstdio>
#include <cstdlib>

#define REQUIRE(condition)                                                               \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            std::abort();                                                                \
        }                                                                                \
    } while (false)

#define REQUIRE_THROWS(Exception, expression) \
    do {                                      \
        bool thrown = false;                  \
        try {                                 \
            static_cast<void>(expression);    \
        } catch (const Exception&) {          \
            thrown = true;                    \
        }                                     \
        REQUIRE(thrown);                      \
    } while (false)
