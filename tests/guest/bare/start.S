/* From the PVH entry (32 bits) to ring 3 of 64-bit mode, in as few ring-0 instructions as possible:
 * where KVM emulates ring 0 each one costs microseconds. Page tables are made by the assembler.
 * After this only interrupt stubs run in ring 0. */

  .section .note.pvh, "a"
  .align 4
  .long 4, 4, 18            /* XEN_ELFNOTE_PHYS32_ENTRY */
  .asciz "Xen"
  .long pvh_start

  .text
  .code32
  .globl pvh_start
pvh_start:
  movl %ebx, start_info
  lgdt gdt_pointer
  movl $pml4, %eax
  movl %eax, %cr3
  movl %cr4, %eax
  orl $0x20, %eax           /* physical address extension */
  movl %eax, %cr4
  movl $0xc0000080, %ecx    /* EFER: long mode */
  rdmsr
  orl $0x100, %eax
  wrmsr
  movl %cr0, %eax
  orl $0x80000001, %eax     /* paging, protection */
  movl %eax, %cr0
  ljmp $0x08, $long_start

  .code64
long_start:
  movl $0x10, %eax
  movl %eax, %ds
  movl %eax, %es
  movl %eax, %ss
  movl $ring0_stacks + 4096, %esp
  call set_up_tables
  xorl %edi, %edi
enter_ring3:                /* edi: number of this processor */
  lidt idt_pointer
  movl %edi, %eax
  shll $4, %eax
  addl $0x28, %eax
  ltr %ax
  movl $0x1b, %eax
  movl %eax, %ds
  movl %eax, %es
  movl %edi, %eax
  shll $16, %eax
  addl $user_stacks + 65536, %eax
  pushq $0x1b               /* ss */
  pushq %rax                /* rsp */
  pushq $0x202              /* rflags: interrupts on */
  pushq $0x23               /* cs */
  pushq $ring3_entry
  iretq

ring3_entry:
  andq $-16, %rsp
  call guest_main
1:
  pause
  jmp 1b

/* The second processor starts here, in real mode, copied to 0x8000. */
  .globl trampoline, trampoline_end
  .code16
trampoline:
  cli
  xorw %ax, %ax
  movw %ax, %ds
  lgdtl 0x8000 + trampoline_gdt - trampoline
  movl $pml4, %eax
  movl %eax, %cr3
  movl $0x20, %eax
  movl %eax, %cr4
  movl $0xc0000080, %ecx
  rdmsr
  orl $0x100, %eax
  wrmsr
  movl %cr0, %eax
  orl $0x80000001, %eax
  movl %eax, %cr0
  ljmpl $0x08, $second_start
trampoline_gdt:
  .word gdt_end - gdt - 1
  .long gdt
trampoline_end:

  .code64
second_start:
  movl $0x10, %eax
  movl %eax, %ds
  movl %eax, %es
  movl %eax, %ss
  movl $ring0_stacks + 8192, %esp
  movl $1, %edi
  jmp enter_ring3

/* Interrupt stubs of vectors 0x40 to 0x5f: count, acknowledge at the local APIC, return. */
  .macro count_stub number
  .align 32
  pushq %rax
  incl interrupt_counts + 4 * \number
  movl $0xfee000b0, %eax
  movl $0, (%rax)
  popq %rax
  iretq
  .endm
  .align 32
  .globl interrupt_stubs
interrupt_stubs:
  .set i, 0
  .rept 32
  count_stub i
  .set i, i + 1
  .endr

/* Exceptions 0 to 31: tell and stop. */
  .macro exception_stub number
  .align 16
  pushq $\number
  jmp exception
  .endm
  .align 16
  .globl exception_stubs
exception_stubs:
  .set i, 0
  .rept 32
  exception_stub i
  .set i, i + 1
  .endr
exception:
  movq %rsp, %rdi
  andq $-16, %rsp
  call exception_report
2:
  hlt
  jmp 2b

  .data
  .align 8
  .globl gdt
gdt:
  .quad 0
  .quad 0x00af9b000000ffff  /* 0x08: ring 0 code */
  .quad 0x00cf93000000ffff  /* 0x10: ring 0 data */
  .quad 0x00cff3000000ffff  /* 0x18: ring 3 data */
  .quad 0x00affb000000ffff  /* 0x20: ring 3 code */
  .quad 0, 0, 0, 0          /* 0x28, 0x38: task states of both processors */
gdt_end:
gdt_pointer:
  .word gdt_end - gdt - 1
  .quad gdt
idt_pointer:
  .word 0x60 * 16 - 1
  .quad idt

/* The first 4 GiB, one to one, in pages of 2 MiB, open to ring 3. */
  .align 4096
pml4:
  .quad pdpt + 7
  .fill 511, 8, 0
pdpt:
  .quad pd + 7, pd + 0x1007, pd + 0x2007, pd + 0x3007
  .fill 508, 8, 0
pd:
  .set i, 0
  .rept 2048
  .quad (i << 21) | 0x87
  .set i, i + 1
  .endr

  .bss
  .align 4096
  .globl ring0_stacks
ring0_stacks:
  .skip 8192
user_stacks:
  .skip 131072
  .globl start_info
start_info:
  .skip 8
