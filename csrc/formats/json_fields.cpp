#include "formats/json_fields.h"

#include <limits>
#include <stdexcept>

namespace coe {

namespace {

constexpr int most_depth = 100;

[[noreturn]] void refuse(const std::string& name, const std::string& what) {
    throw std::invalid_argument(name + " " + what);
}

// Counted before parsing: a callback of nlohmann_json's parser would take quadratic time.
bool is_flat(const std::string& text) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        if (in_string) {
            if (text[i] == '\\') {
                ++i;  // an escaped quote does not end the string
            } else {
                in_string = text[i] != '"';
            }
        } else if (text[i] == '"') {
            in_string = true;
        } else if (text[i] == '[' || text[i] == '{') {
            if (++depth > most_depth) {
                return false;
            }
        } else if (text[i] == ']' || text[i] == '}') {
            --depth;
        }
    }
    return true;
}

}  // namespace

Json parse_json(const std::string& text) {
    return is_flat(text) ? Json::parse(text, nullptr, false) : Json(Json::value_t::discarded);
}

std::string shortened(const Json& value) {
    constexpr size_t longest = 40;
    if (value.is_structured()) {
        return value.is_array() ? "a list" : "an object";
    }
    const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    return text.size() <= longest ? text : text.substr(0, longest) + "...";
}

const Json& field(const Json& object, const char* key) {
    if (!object.is_object() || object.find(key) == object.end()) {
        refuse(key, "is missing");
    }
    return object[key];
}

std::string text_field(const Json& object, const char* key) {
    const Json& value = field(object, key);
    if (!value.is_string()) {
        refuse(key, "is " + shortened(value) + ", not a text");
    }
    return value.get<std::string>();
}

int64_t integer(const Json& value, const char* name) {
    // A number above the range of int64_t is an unsigned one.
    constexpr auto most = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<uint64_t>() > most)) {
        refuse(name, "is " + shortened(value) + ", not a whole number");
    }
    return value.get<int64_t>();
}

uint64_t count(const Json& value, const char* name, uint64_t least, uint64_t most) {
    if (!value.is_number_unsigned() || value.get<uint64_t>() < least || value.get<uint64_t>() > most) {
        refuse(name, "is " + shortened(value) + ", not a number from " + std::to_string(least) + " to " +
                         std::to_string(most));
    }
    return value.get<uint64_t>();
}

const Json& list_field(const Json& object, const char* key) {
    static const Json none = Json::array();
    const auto found = object.find(key);
    if (found != object.end() && !found->is_array()) {
        refuse(key, "is " + shortened(*found) + ", not a list");
    }
    return found == object.end() ? none : *found;
}

}  // namespace coe
