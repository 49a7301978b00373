// A file for inputs that are read from files; it is removed with the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

struct ScratchFile {
    std::string path = (std::filesystem::temp_directory_path() /
                        ("coe-fuzz-" + std::to_string(reinterpret_cast<uintptr_t>(this)) + ".gguf"))
                           .string();

    ~ScratchFile() { std::remove(path.c_str()); }

    void write(const uint8_t* data, size_t size) const {
        std::ofstream(path, std::ios::binary)
            .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
    }
};
