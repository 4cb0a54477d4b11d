// The file of test vectors that kernel_cases.py writes: inputs, and for each packed weight what must come out.
//
//     "SDVEC001"; count of inputs; for each: rows, columns, float32[rows][columns]
//     then to the end of the file, for each case:
//     rows, columns, value type, group, kept per block, block, index of its input,
//     largest relative error in 1e-9, number of batch sizes (int64 each)
//     the batch sizes (int64); mask, values and scales, each with its number of elements and of bytes (int64) before it
//     float64[largest batch][rows]: the product in float64

#ifndef SLIMDEPLOY_VECTORS_H
#define SLIMDEPLOY_VECTORS_H

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "slimdeploy_kernels.h"

// A heap block of exactly as many bytes as it holds, so that AddressSanitizer sees every read beyond it.
class Block {
   public:
    explicit Block(size_t bytes = 0) : bytes_(bytes), data_(static_cast<uint8_t *>(malloc(bytes ? bytes : 1))) {}
    Block(const void *source, size_t bytes) : Block(bytes) { memcpy(data_.get(), source, bytes); }

    uint8_t *data() { return data_.get(); }
    const uint8_t *data() const { return data_.get(); }
    size_t bytes() const { return bytes_; }
    template <class T>
    T *as() const {
        return reinterpret_cast<T *>(data_.get());
    }

   private:
    struct Free {
        void operator()(void *p) const { free(p); }
    };
    size_t bytes_;
    std::unique_ptr<uint8_t, Free> data_;
};

struct Input {
    int64_t rows, columns;
    Block values;
};

struct Case {
    int64_t rows, columns, value_type, group, kept_per_block, block, input, batch_sizes;
    std::vector<int64_t> batches;
    int64_t mask_count, value_count, scale_count;
    Block mask, values, scales, expected;

    slimdeploy_packed packed() const {
        return {rows,
                columns,
                int32_t(value_type),
                int32_t(group),
                int32_t(kept_per_block),
                int32_t(block),
                mask_count ? mask.data() : nullptr,
                uint64_t(mask_count),
                value_count ? values.data() : nullptr,
                uint64_t(value_count),
                scale_count ? scales.as<const uint16_t>() : nullptr,
                uint64_t(scale_count)};
    }
};

class VectorFile {
   public:
    explicit VectorFile(const char *name) : file_(fopen(name, "rb")) {
        char magic[8];
        if (!file_ || fread(magic, 1, 8, file_) != 8 || memcmp(magic, "SDVEC001", 8)) fail("is no file of vectors");
        for (int64_t left = number(); left > 0; left--) {
            const int64_t rows = number(), columns = number();
            inputs.push_back({rows, columns, bytes(size_t(rows * columns) * sizeof(float))});
        }
    }
    ~VectorFile() { fclose(file_); }
    VectorFile(const VectorFile &) = delete;
    VectorFile &operator=(const VectorFile &) = delete;

    // False at the end of the file.
    bool next(Case &out) {
        const int first = fgetc(file_);
        if (first == EOF) return false;
        ungetc(first, file_);
        for (int64_t *field : {&out.rows, &out.columns, &out.value_type, &out.group, &out.kept_per_block, &out.block,
                               &out.input, &out.batch_sizes}) {
            *field = number();
        }
        out.batches.clear();
        for (int64_t i = 0; i < out.batch_sizes; i++) out.batches.push_back(number());
        out.mask = array(out.mask_count);
        out.values = array(out.value_count);
        out.scales = array(out.scale_count);
        int64_t largest = 0;
        for (const int64_t batch : out.batches) largest = batch > largest ? batch : largest;
        out.expected = bytes(size_t(largest * out.rows) * sizeof(double));
        return true;
    }

    std::vector<Input> inputs;

   private:
    [[noreturn]] static void fail(const char *what) {
        fprintf(stderr, "the file of vectors %s\n", what);
        exit(2);
    }
    Block bytes(size_t count) {
        Block block(count);
        if (fread(block.data(), 1, count, file_) != count) fail("is cut off");
        return block;
    }
    int64_t number() {
        int64_t value;
        const Block block = bytes(sizeof value);
        memcpy(&value, block.data(), sizeof value);
        return value;
    }
    Block array(int64_t &elements) {
        elements = number();
        return bytes(size_t(number()));
    }

    FILE *file_;
};

#endif
