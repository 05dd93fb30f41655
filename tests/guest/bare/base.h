// The ground of the bare guest: ports, console, interrupt counters, the second processor. All of
// it but set_up_tables() and exception_report() runs in ring 3.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long;

// How often each of the vectors kFirstVector to kFirstVector + 31 came.
constexpr u32 kFirstVector = 0x40;
extern "C" volatile u32 interrupt_counts[32];

inline void out8(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
inline void out16(u16 port, u16 value) { asm volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
inline void out32(u16 port, u32 value) { asm volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
inline u32 in32(u16 port) {
  u32 value;
  asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
inline void fence() { asm volatile("mfence" : : : "memory"); }
inline void pause() { asm volatile("pause" : : : "memory"); }

template <class T>
volatile T& at(u64 address) {
  return *reinterpret_cast<volatile T*>(address);
}

// Console. print() takes pieces of text and numbers and writes one line at a time as a whole.
struct Line {
  char text[256];
  u32 length = 0;
  Line& operator<<(const char* piece);
  Line& operator<<(u64 number);
  void print();
};

// Says why and switches the machine off.
[[noreturn]] void give_up(const char* why, u64 a = 0, u64 b = 0);
// Switches the machine off as its ACPI tables say (acpi.cpp).
[[noreturn]] void power_off();

// What the loader left: hvm_start_info.
extern "C" u64 start_info;
// The kernel command line, and the number after "NAME=" in it, or `otherwise`.
const char* command_line();
u64 argument(const char* name, u64 otherwise);
const char* find_text(const char* text, const char* part);
u64 parse_number(const char*& text);

void enable_local_apic();
void start_second_processor();
// Sends the edges of I/O APIC pin `pin` to processor 0 as `vector`.
void route_pin(u32 pin, u32 vector);

extern "C" void* memcpy(void* to, const void* from, u64 size);
extern "C" void* memset(void* to, int value, u64 size);

// The work of each processor, in ring 3 (workload.cpp).
extern "C" void guest_main(u32 processor);
