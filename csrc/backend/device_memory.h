// Owned memory of a backend: move-only, freed with its owner. The host must not read or write it. It may only compute
// with its addresses and pass them to the backend; upload() and download() copy data in and out (backend.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace gemlet {

class DeviceMemory {
 public:
  // Frees the memory when it is destroyed.
  class Keeper {
   public:
    virtual ~Keeper() = default;
  };

  DeviceMemory() = default;
  DeviceMemory(uint8_t* data, size_t size, std::unique_ptr<Keeper> keeper)
      : keeper_(std::move(keeper)), data_(data), size_(size) {}
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    DeviceMemory old(std::move(other));
    swap(old);
    return *this;
  }

  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  size_t size() const { return size_; }

 private:
  void swap(DeviceMemory& other) noexcept {
    std::swap(keeper_, other.keeper_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  std::unique_ptr<Keeper> keeper_;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace gemlet
