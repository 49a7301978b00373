#include "formats/atomic_file.h"

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <system_error>

#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#include <share.h>
#include <sys/stat.h>

#include "base/win32.h"
#else
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace coe {

namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_by_errno() { throw std::system_error(errno, std::generic_category()); }

// Throws std::runtime_error for a symlink of another user in a directory where everybody may write, such as
// /tmp: it could lead to any file of the user. Linux has the same rule (protected_symlinks), but it may be
// off.
void check_link(const fs::path& link) {
#ifdef _WIN32
    static_cast<void>(link);
#else
    struct stat found = {};
    struct stat directory = {};
    if (lstat(link.c_str(), &found) != 0 || stat(link.parent_path().c_str(), &directory) != 0) {
        fail_by_errno();
    }
    const bool is_shared = (directory.st_mode & S_ISVTX) != 0 && (directory.st_mode & S_IWOTH) != 0;
    if (is_shared && found.st_uid != geteuid() && found.st_uid != directory.st_uid) {
        throw std::runtime_error(link.u8string() +
                                 ": is a symlink that another user has put into a shared directory; name "
                                 "another place");
    }
#endif
}

// Returns a path with its symlinks resolved, also a dangling one: its target is the file to write.
fs::path followed(const fs::path& path) {
    constexpr int most_links = 40;
    fs::path found = path.is_absolute() ? path.root_path() : fs::current_path();
    std::vector<fs::path> waiting;  // the next one is the last
    const auto wait_for = [&](const fs::path& parts) {
        const fs::path relative = parts.relative_path();
        const std::vector<fs::path> names(relative.begin(), relative.end());
        waiting.insert(waiting.end(), names.rbegin(), names.rend());
    };
    wait_for(path);
    for (int links = 0; !waiting.empty();) {
        const fs::path name = waiting.back();
        waiting.pop_back();
        if (name == "." || name.empty()) {
            continue;
        }
        const fs::path step = name == ".." ? found.parent_path() : found / name;
        if (name == ".." || !fs::is_symlink(step)) {
            found = step;
            continue;
        }
        if (++links > most_links) {
            throw std::system_error(std::make_error_code(std::errc::too_many_symbolic_link_levels));
        }
        check_link(step);
        const fs::path target = fs::read_symlink(step);
        if (target.is_absolute()) {
            found = target.root_path();
        }
        wait_for(target);
    }
    return found;
}

struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
};
using OpenFile = std::unique_ptr<std::FILE, Close>;

#ifdef _WIN32
// No other program can open it until it is complete.
OpenFile create(const fs::path& path) {
    constexpr int flags = _O_WRONLY | _O_CREAT | _O_EXCL | _O_BINARY | _O_NOINHERIT;
    int descriptor = -1;
    _wsopen_s(&descriptor, path.c_str(), flags, _SH_DENYRW, _S_IREAD | _S_IWRITE);
    return OpenFile(descriptor < 0 ? nullptr : _fdopen(descriptor, "wb"));
}

void sync(std::FILE* file) {
    if (_commit(_fileno(file)) != 0) {
        fail_by_errno();
    }
}

void replace(const fs::path& target, const fs::path& with) {
    if (MoveFileExW(with.c_str(), target.c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH) == 0) {
        throw std::system_error(static_cast<int>(GetLastError()), std::system_category());
    }
}

void set_mode(std::FILE*, const fs::file_status&) {}
bool is_ours(std::FILE*) { return true; }
#else
// Readable by its owner only, until it is complete.
OpenFile create(const fs::path& path) {
    const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR);
    return OpenFile(descriptor < 0 ? nullptr : fdopen(descriptor, "wb"));
}

void sync(std::FILE* file) {
    if (fsync(fileno(file)) != 0) {
        fail_by_errno();
    }
}

// Renames a file, and syncs its directory, so that the rename lasts. Some file systems refuse this.
void replace(const fs::path& target, const fs::path& with) {
    fs::rename(with, target);
    const fs::path directory = target.parent_path();
    const int descriptor = open(directory.empty() ? "." : directory.c_str(), O_RDONLY);
    if (descriptor >= 0) {
        fsync(descriptor);
        close(descriptor);
    }
}

// Gives a finished file the mode of the file that it replaces, or that of a new file.
void set_mode(std::FILE* file, const fs::file_status& before) {
    mode_t mode = static_cast<mode_t>(before.permissions() & fs::perms::mask);
    if (!fs::exists(before)) {
        static std::mutex one_at_a_time;
        const std::lock_guard<std::mutex> lock(one_at_a_time);
        const mode_t mask = umask(S_IRWXG | S_IRWXO);
        umask(mask);
        mode = (S_IRUSR | S_IWUSR | S_IRGRP | S_IWGRP | S_IROTH | S_IWOTH) & ~mask;
    }
    // Some file systems refuse this; the file then stays private.
    static_cast<void>(fchmod(fileno(file), mode));
}

// Locks a file, because Python's writer removes temporary files that are not locked. Returns false if it
// has removed this one already.
bool is_ours(std::FILE* file) {
    struct stat found = {};
    flock(fileno(file), LOCK_EX | LOCK_NB);
    return fstat(fileno(file), &found) == 0 && found.st_nlink > 0;
}
#endif

// Creates a locked file beside `target`, and gives its path, by whose name Python's writer finds leftovers.
OpenFile create_beside(const fs::path& target, fs::path& path) {
    std::random_device random;
    while (true) {
        char suffix[32];
        std::snprintf(suffix, sizeof(suffix), "%08x%08x.coe-tmp", random(), random());
        path = target.parent_path() /
               fs::u8path("." + target.filename().u8string().substr(0, 200) + "." + suffix);
        OpenFile file = create(path);
        if (file == nullptr) {
            fail_by_errno();
        }
        if (is_ours(file.get())) {
            return file;
        }
    }
}

}  // namespace

void write_file(const std::string& path, const std::vector<uint8_t>& bytes) {
    try {
        const fs::path target = followed(fs::u8path(path));
        const fs::file_status before = fs::status(target);
        if (fs::exists(before) && !fs::is_regular_file(before)) {
            throw std::runtime_error(path + ": is not a regular file; choose another output");
        }
        fs::path temporary;
        OpenFile file = create_beside(target, temporary);
        try {
            if (std::fwrite(bytes.data(), 1, bytes.size(), file.get()) != bytes.size() ||
                std::fflush(file.get()) != 0) {
                fail_by_errno();
            }
            set_mode(file.get(), before);
            sync(file.get());
            file.reset();
            replace(target, temporary);
        } catch (...) {
            file.reset();
            std::error_code ignored;
            fs::remove(temporary, ignored);
            throw;
        }
    } catch (const std::system_error& error) {
        throw std::runtime_error(path + ": cannot be written: " + error.code().message());
    }
}

}  // namespace coe
