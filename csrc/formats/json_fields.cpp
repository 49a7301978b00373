#include "formats/json_fields.h"

#include <limits>
#include <stdexcept>

namespace coe {

namespace {

[[noreturn]] void refuse(const std::string& name, const std::string& what) {
    throw std::invalid_argument(name + " " + what);
}

}  // namespace

std::string shortened(const Json& value) {
    constexpr size_t longest = 40;
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
