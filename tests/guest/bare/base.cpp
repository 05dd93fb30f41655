#include "base.h"

namespace {

constexpr u64 kLocalApic = 0xfee00000, kIoApic = 0xfec00000;
constexpr u64 kTrampoline = 0x8000;
constexpr u16 kSerial = 0x3f8;
constexpr u32 kTaskStateSize = 104 + 8192 + 1;  // with a bitmap of all ports

struct alignas(16) TaskState {
  u8 bytes[kTaskStateSize];
};
TaskState task_states[2];
u32 console_lock;

}  // namespace

extern "C" {
alignas(16) u64 idt[0x60 * 2];
volatile u32 interrupt_counts[32];
extern u64 gdt[];
extern u8 ring0_stacks[], interrupt_stubs[], exception_stubs[], trampoline[], trampoline_end[];

// Ring 0: interrupt gates, and task states whose port bitmap lets ring 3 use every port.
void set_up_tables() {
  for (u32 vector = 0; vector < 0x60; ++vector) {
    u64 handler = 0;
    if (vector < 32) handler = reinterpret_cast<u64>(exception_stubs) + 16 * vector;
    if (vector >= kFirstVector) {
      handler = reinterpret_cast<u64>(interrupt_stubs) + 32 * (vector - kFirstVector);
    }
    if (handler == 0) continue;
    idt[2 * vector] =
        (handler & 0xffff) | (0x08UL << 16) | (0x8e00UL << 32) | ((handler >> 16 & 0xffff) << 48);
    idt[2 * vector + 1] = handler >> 32;
  }
  for (u32 processor = 0; processor < 2; ++processor) {
    const u64 base = reinterpret_cast<u64>(&task_states[processor]);
    *reinterpret_cast<u64*>(base + 4) =
        reinterpret_cast<u64>(ring0_stacks) + 4096 * (processor + 1);
    *reinterpret_cast<u16*>(base + 102) = 104;  // where the bitmap is
    task_states[processor].bytes[kTaskStateSize - 1] = 0xff;
    const u64 limit = kTaskStateSize - 1;
    gdt[5 + 2 * processor] = (limit & 0xffff) | ((base & 0xffffff) << 16) | (0x89UL << 40) |
                             ((limit >> 16 & 0xf) << 48) | ((base >> 24 & 0xff) << 56);
    gdt[6 + 2 * processor] = base >> 32;
  }
}

// Ring 0: the stack has the number, perhaps an error code, and the return frame.
void exception_report(const u64* stack) {
  const u64 number = stack[0];
  const bool has_code = number == 8 || (number >= 10 && number <= 14) || number == 17;
  give_up("GUEST FAIL: exception, number and address", number, stack[has_code ? 2 : 1]);
}

void* memcpy(void* to, const void* from, u64 size) {
  void* result = to;
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
  return result;
}

void* memset(void* to, int value, u64 size) {
  void* result = to;
  asm volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
  return result;
}
}  // extern "C"

Line& Line::operator<<(const char* piece) {
  while (*piece != 0 && length < sizeof text - 2) text[length++] = *piece++;
  return *this;
}

Line& Line::operator<<(u64 number) {
  char digits[21];
  u32 at_digit = 20;
  digits[at_digit] = 0;
  do {
    digits[--at_digit] = static_cast<char>('0' + number % 10);
    number /= 10;
  } while (number != 0);
  return *this << &digits[at_digit];
}

void Line::print() {
  text[length++] = '\n';
  while (__atomic_exchange_n(&console_lock, 1, __ATOMIC_ACQUIRE) != 0) pause();
  // A string output is one exit to the machine for many bytes where KVM can batch it.
  const char* from = text;
  u64 count = length;
  asm volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(kSerial) : "memory");
  __atomic_store_n(&console_lock, 0, __ATOMIC_RELEASE);
  length = 0;
}

void give_up(const char* why, u64 a, u64 b) {
  Line line;
  line << why << " " << a << " " << b;
  line.print();
  power_off();
}

const char* command_line() {
  // hvm_start_info: the command line's address is at offset 24.
  return reinterpret_cast<const char*>(at<u64>(start_info + 24));
}

const char* find_text(const char* text, const char* part) {
  for (; *text != 0; ++text) {
    u32 same = 0;
    while (part[same] != 0 && text[same] == part[same]) ++same;
    if (part[same] == 0) return text + same;
  }
  return nullptr;
}

u64 parse_number(const char*& text) {
  u64 base = 10;
  if (text[0] == '0' && text[1] == 'x') {
    base = 16;
    text += 2;
  }
  for (u64 number = 0;; ++text) {
    const char c = *text;
    const u64 digit = c >= '0' && c <= '9'   ? static_cast<u64>(c - '0')
                      : c >= 'a' && c <= 'f' ? static_cast<u64>(c - 'a' + 10)
                                             : base;
    if (digit >= base) return number;
    number = number * base + digit;
  }
}

u64 argument(const char* name, u64 otherwise) {
  const char* found = find_text(command_line(), name);
  return found != nullptr ? parse_number(found) : otherwise;
}

void enable_local_apic() {
  // The old controllers would deliver the same lines at vectors that nobody set.
  out8(0x21, 0xff);
  out8(0xa1, 0xff);
  at<u32>(kLocalApic + 0xf0) = 0x1ff;
}

void start_second_processor() {
  memcpy(reinterpret_cast<void*>(kTrampoline), trampoline,
         static_cast<u64>(trampoline_end - trampoline));
  at<u32>(kLocalApic + 0x310) = 1U << 24;
  at<u32>(kLocalApic + 0x300) = 0x4500;  // INIT
  for (u32 i = 0; i < 1000; ++i) pause();
  at<u32>(kLocalApic + 0x310) = 1U << 24;
  at<u32>(kLocalApic + 0x300) = 0x4600 | (kTrampoline >> 12);  // start-up
}

void route_pin(u32 pin, u32 vector) {
  at<u32>(kIoApic) = 0x10 + 2 * pin + 1;
  at<u32>(kIoApic + 0x10) = 0;  // processor 0
  at<u32>(kIoApic) = 0x10 + 2 * pin;
  at<u32>(kIoApic + 0x10) = vector;  // fixed, edge, active high, open
}
