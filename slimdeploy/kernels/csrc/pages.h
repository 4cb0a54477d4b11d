// Memory by pages: huge ones for packed weights; those that a file is mapped to, given back.

#ifndef SLIMDEPLOY_PAGES_H
#define SLIMDEPLOY_PAGES_H

#include <cstddef>
#include <cstdint>

namespace slimdeploy {

// Zeroed memory in huge pages where the system has them: kernels stream through it, and small pages cost a tenth.
// Pages that are never written take no memory.
class Buffer {
   public:
    explicit Buffer(size_t capacity);
    ~Buffer();
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    uint8_t *data() const { return data_; }

   private:
    void *mapping_;
    size_t mapped_;
    uint8_t *data_;
};

// Takes the whole pages between `begin` and `begin + bytes` out of memory if they are mapped from a file and nobody has
// written to them: whoever reads them again gets them from the file. Does nothing with any others.
void give_back_file_pages(const void *begin, size_t bytes);

}  // namespace slimdeploy

#endif
