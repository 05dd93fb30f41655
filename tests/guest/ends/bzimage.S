/* A file in the form of a Linux bzImage whose kernel says which entry it was started at and repeats
 * its command line and its initrd, then switches off. Its boot sector and setup part only hold the
 * header (boot.rst); the loader does not run them. */
  .text
  .globl image
image:
  .org image + 0x1f1
  .byte 1                   /* setup_sects: the kernel is at 1024 */
  .org image + 0x1fe
  .word 0xaa55
  .byte 0xeb, header_end - 0x202
  .ascii "HdrS"
  .word 0x020c              /* protocol 2.12 */
  .org image + 0x211
  .byte 1                   /* loadflags: high */
  .org image + 0x214
  .long 0x100000            /* code32_start */
  .org image + 0x22c
  .long 0x7fffffff          /* initrd_addr_max */
  .org image + 0x236
  .word 1                   /* xloadflags: there is a 64-bit entry */
  .long 255                 /* cmdline_size */
  .org image + 0x260
  .long 0x10000             /* init_size */
  .set header_end, . - image

  .org image + 1024
  .code32
entry32:                    /* esi: the zero page; position of the code: 0x100000 */
  movl $0x100000 + text32 - entry32, %ebx
  movl $10, %ecx
  xchgl %ebx, %esi
  movl $0x3f8, %edx
  rep outsb
  movl 0x70(%ebx), %esi     /* the ACPI root pointer: its signature */
  movl $8, %ecx
  rep outsb
  movl 0x218(%ebx), %edi    /* initrd and its size */
  movl 0x21c(%ebx), %ecx
  movl 0x228(%ebx), %esi    /* the command line, to its end */
1:
  lodsb
  testb %al, %al
  jz 2f
  outb %al, %dx
  jmp 1b
2:
  movl %edi, %esi
  rep outsb
  movw $0x604, %dx
  movw $0x2000, %ax
  outw %ax, %dx
3:
  hlt
  jmp 3b
text32:
  .ascii "entry 32: "
text64:
  .ascii "entry 64: "

  .org image + 1024 + 0x200
  .code64
entry64:                    /* rsi: the zero page */
  movl $0x100000 + text64 - entry32, %ebx
  movl $10, %ecx
  xchgq %rbx, %rsi
  movl $0x3f8, %edx
  rep outsb
  movl 0x70(%rbx), %esi
  movl $8, %ecx
  rep outsb
  movl 0x218(%rbx), %edi
  movl 0x21c(%rbx), %ecx
  movl 0x228(%rbx), %esi
1:
  lodsb
  testb %al, %al
  jz 2f
  outb %al, %dx
  jmp 1b
2:
  movl %edi, %esi
  rep outsb
  movw $0x604, %dx
  movw $0x2000, %ax
  outw %ax, %dx
3:
  hlt
  jmp 3b
