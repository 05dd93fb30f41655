/* A guest of a few instructions for each way a machine can end. The first letter of the command
 * line says which: o power off, r reset, t triple fault, e an instruction that KVM cannot emulate,
 * h halt for good, i echo serial input until a 'q', then power off, m repeat the first module (the
 * initrd), then power off, f fill the serial port for ever, b let a second processor
 * fill it and, after one byte of input, both. It says "ready" first. */
  .section .note.pvh, "a"
  .align 4
  .long 4, 4, 18            /* XEN_ELFNOTE_PHYS32_ENTRY */
  .asciz "Xen"
  .long start

  .text
  .code32
  .globl start
start:
  movl 16(%ebx), %edi       /* hvm_start_info: the list of modules, the command line */
  movl 24(%ebx), %eax
  movb (%eax), %bl
  movl $ready, %esi
  movl $0x3f8, %edx
  movl $6, %ecx
  rep outsb
  cmpb $'o', %bl
  je power_off
  cmpb $'r', %bl
  je reset
  cmpb $'t', %bl
  je triple_fault
  cmpb $'e', %bl
  je emulation
  cmpb $'i', %bl
  je echo
  cmpb $'m', %bl
  je module
  cmpb $'f', %bl
  je flood
  cmpb $'b', %bl
  je both
halt:
  cli
  hlt
  jmp halt

power_off:
  movw $0x604, %dx
  movw $0x2000, %ax
  outw %ax, %dx
  jmp halt

flood:
  movb $'f', %al
  outb %al, %dx
  jmp flood

both:
  movl $second, %esi
  movl $0x8000, %edi
  movl $(second_end - second), %ecx
  rep movsb
  movl $0xfee00300, %eax    /* INIT, then start at 0x8000, for all but this one */
  movl $0x000c4500, (%eax)
  movl $5000, %ecx
1:
  loop 1b
  movl $0x000c4608, (%eax)
1:
  movw $0x3fd, %dx
  inb %dx, %al
  testb $1, %al
  jz 1b
  movw $0x3f8, %dx
  jmp flood

  .code16
second:
  movw $0x3f8, %dx
  movb $'f', %al
1:
  outb %al, %dx
  jmp 1b
second_end:
  .code32

module:
  movl (%edi), %esi
  movl 8(%edi), %ecx
  rep outsb
  jmp power_off

reset:
  movb $0xfe, %al
  outb %al, $0x64
  jmp halt

triple_fault:
  lidt no_table
  ud2

emulation:
  fldl 0xd8000000           /* x87 from a device address, in ring 0 */
  jmp halt

echo:
  movw $0x3fd, %dx
  inb %dx, %al
  testb $1, %al
  jz echo
  movw $0x3f8, %dx
  inb %dx, %al
  outb %al, %dx
  cmpb $'q', %al
  jne echo
  jmp power_off

ready:
  .ascii "ready\n"
no_table:
  .word 0
  .long 0
