#include "tools/run/message_routes.h"

#include <cerrno>
#include <utility>

namespace platter::run {

Result<unsigned> MessageRoutes::allocate() {
  MutexLock lock(mutex_);
  for (std::size_t i = 0; i < messages_.size(); ++i) {
    if (!messages_[i].used) {
      messages_[i].used = true;
      return static_cast<unsigned>(i) + kLines;
    }
  }
  if (messages_.size() >= kMaxGsis) {
    return fail(ENOSPC, "more than {} message-signalled interrupts", kMaxGsis);
  }
  messages_.emplace_back().used = true;
  return static_cast<unsigned>(messages_.size() - 1) + kLines;
}

void MessageRoutes::free(unsigned gsi) {
  MutexLock lock(mutex_);
  // The route stays in the kernel's table until the next change; nothing points to it any more.
  if (gsi >= kLines && gsi - kLines < messages_.size()) messages_[gsi - kLines] = Message{};
}

Result<void> MessageRoutes::set(unsigned gsi, std::uint64_t address, std::uint32_t data) {
  MutexLock lock(mutex_);
  if (gsi < kLines || gsi - kLines >= messages_.size() || !messages_[gsi - kLines].used) {
    return fail(EINVAL, "interrupt {} is not a message-signalled one", gsi);
  }
  const Message wanted{.used = true, .routed = true, .address = address, .data = data};
  const Message before = std::exchange(messages_[gsi - kLines], wanted);
  if (before == wanted) return {};
  auto committed = commit_(table());
  // What the kernel does not know must not count as known when the same message is set again.
  if (!committed) messages_[gsi - kLines] = before;
  return committed;
}

std::vector<kvm_irq_routing_entry> MessageRoutes::table() const {
  // It starts with the lines as the kernel makes them by itself: IRQ n to both controllers, 16 and
  // up to the I/O APIC alone.
  std::vector<kvm_irq_routing_entry> entries;
  const auto add_pin = [&entries](unsigned gsi, unsigned chip, unsigned pin) {
    kvm_irq_routing_entry entry{};
    entry.gsi = gsi;
    entry.type = KVM_IRQ_ROUTING_IRQCHIP;
    entry.u.irqchip.irqchip = chip;
    entry.u.irqchip.pin = pin;
    entries.push_back(entry);
  };
  for (unsigned line = 0; line < kLines; ++line) {
    if (line < 8) add_pin(line, KVM_IRQCHIP_PIC_MASTER, line);
    if (line >= 8 && line < 16) add_pin(line, KVM_IRQCHIP_PIC_SLAVE, line - 8);
    add_pin(line, KVM_IRQCHIP_IOAPIC, line);
  }
  for (std::size_t i = 0; i < messages_.size(); ++i) {
    if (!messages_[i].used || !messages_[i].routed) continue;
    kvm_irq_routing_entry entry{};
    entry.gsi = static_cast<std::uint32_t>(i) + kLines;
    entry.type = KVM_IRQ_ROUTING_MSI;
    entry.u.msi.address_lo = static_cast<std::uint32_t>(messages_[i].address);
    entry.u.msi.address_hi = static_cast<std::uint32_t>(messages_[i].address >> 32);
    entry.u.msi.data = messages_[i].data;
    entries.push_back(entry);
  }
  return entries;
}

}  // namespace platter::run
