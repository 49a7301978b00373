#include "base/ggml_check.h"

#include <cstring>

#include "ggml.h"

namespace coe {

namespace {

struct Operation {
    ggml_op number;
    const char* name;
};

// All operations that router_nodes.cpp compares nodes with.
constexpr Operation operations[] = {
    {GGML_OP_NONE, "NONE"},   {GGML_OP_ADD, "ADD"},           {GGML_OP_ADD_ID, "ADD_ID"},
    {GGML_OP_MUL, "MUL"},     {GGML_OP_MUL_MAT, "MUL_MAT"},   {GGML_OP_MUL_MAT_ID, "MUL_MAT_ID"},
    {GGML_OP_SCALE, "SCALE"}, {GGML_OP_CPY, "CPY"},           {GGML_OP_RESHAPE, "RESHAPE"},
    {GGML_OP_VIEW, "VIEW"},   {GGML_OP_GET_ROWS, "GET_ROWS"},
};

// Bytes before each tensor in a context's memory: two sizes, a pointer and a type, of eight bytes each.
constexpr size_t object_size = 32;

}  // namespace

std::string compare_ggml(const char* version, const char* (*operation_name)(ggml_op),
                         size_t tensor_overhead) {
    const std::string found = std::string("version ") + version;
    if (std::strcmp(version, COE_GGML_VERSION) != 0) {
        return found;
    }
    for (const Operation& operation : operations) {
        const char* name = operation_name(operation.number);
        if (std::strcmp(name, operation.name) != 0) {
            return found + " with other operations (" + name + " for " + operation.name + ")";
        }
    }
    return tensor_overhead == sizeof(ggml_tensor) + object_size ? ""
                                                                : found + " with tensors of another size";
}

std::string find_other_ggml() { return compare_ggml(ggml_version(), &ggml_op_name, ggml_tensor_overhead()); }

}  // namespace coe
