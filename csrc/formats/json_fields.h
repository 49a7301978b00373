// Reads fields of JSON objects. All functions throw std::invalid_argument that names the field.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace coe {

using Json = nlohmann::ordered_json;  // keeps the order of keys

// Parses a text. Returns a discarded value for what is not JSON, or is nested more than 100 deep.
Json parse_json(const std::string& text);

// A value as text for messages, cut off if it is long.
std::string shortened(const Json& value);

// A field of an object. Throws where it is missing.
const Json& field(const Json& object, const char* key);
std::string text_field(const Json& object, const char* key);
// A whole number, possibly negative.
int64_t integer(const Json& value, const char* name);
// A whole number from `least` to `most`.
uint64_t count(const Json& value, const char* name, uint64_t least, uint64_t most);
// A list; empty where the field is missing.
const Json& list_field(const Json& object, const char* key);

}  // namespace coe
