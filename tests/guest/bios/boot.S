/* A boot sector that uses the disk through INT 13h, that is through the firmware's own virtio-blk
 * driver: reads what the host put at sector 1, copies it to sector 100, writes a pattern of its own
 * to sector 200, reads that back and compares, tells the result on the serial port, and switches off
 * by the port that the ACPI tables name. */
  .code16
  .text
  .globl _start
_start:
  cli
  ljmp $0, $1f
1:
  xorw %ax, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  movw $0x7c00, %sp
  sti
  cld
  movb %dl, drive

  movw $started, %si
  call print

  movb $0x42, %ah           /* read 8 sectors at 1 to 0x8000 */
  movw $packet_in, %si
  call disk
  movb $0x43, %ah           /* write them at 100 */
  movw $packet_copy, %si
  call disk

  movw $0xa000, %di         /* 16 sectors of pattern at 0xa000 */
  movw $0x5aa5, %ax
  movw $16 * 256, %cx
  rep stosw
  movb $0x43, %ah
  movw $packet_out, %si
  call disk
  movb $0x42, %ah           /* back to 0xc000 */
  movw $packet_back, %si
  call disk
  movw $0xa000, %si
  movw $0xc000, %di
  movw $16 * 256, %cx
  repe cmpsw
  movw $wrong, %si
  jne end

  movw $0x0201, %ax         /* and one sector by cylinder, head, sector: this one */
  movw $0x0001, %cx
  xorb %dh, %dh
  movb drive, %dl
  movw $0xc000, %bx
  int $0x13
  movw $failed, %si
  jc end
  cmpw $0xaa55, 0xc000 + 510
  movw $wrong, %si
  jne end
  movw $passed, %si
  call print

  /* The ACPI tables that the firmware was given: root pointer in the last 64 KiB of the first MiB,
   * XSDT and FADT above it, which goes to the disk for the host to see. */
  movw $no_acpi, %si
  pushw $0xf000
  popw %fs
  xorw %di, %di
5:
  cmpl $0x20445352, %fs:(%di)     /* "RSD PTR " */
  je 6f
  addw $16, %di
  jnz 5b
  jmp end
6:
  movl %fs:24(%di), %eax
  call fetch
  cmpl $0x54445358, fetched       /* "XSDT" */
  jne end
  movl fetched + 36, %eax
  call fetch
  cmpl $0x50434146, fetched       /* "FACP" */
  jne end
  movb $0x43, %ah
  movw $packet_fadt, %si
  call disk
  movw fetched + 64, %dx          /* PM1a control */
  jmp 7f
end:
  call print
  movw $0x604, %dx
7:
  movw $0x2000, %ax
  outw %ax, %dx
2:
  hlt
  jmp 2b

fetch:                      /* eax: where; half a KiB of it goes to `fetched` */
  movl %eax, source + 2
  movb $0x93, source + 5    /* the address has 24 bits here, the others are at the end */
  shrl $24, %eax
  movb %al, source + 7
  pushw %si
  movw $segments, %si
  movw $256, %cx
  movb $0x87, %ah
  int $0x15
  popw %si
  jc end
  ret

disk:                       /* ah: function, si: packet */
  movb drive, %dl
  int $0x13
  jc 3f
  ret
3:
  movw $failed, %si
  jmp end

print:                      /* si: text */
  lodsb
  testb %al, %al
  jz 4f
  movw $0x3f8, %dx
  outb %al, %dx
  jmp print
4:
  ret

  .macro packet name, count, buffer, sector
\name:
  .byte 16, 0
  .word \count, \buffer, 0
  .quad \sector
  .endm
  packet packet_in, 8, 0x8000, 1
  packet packet_copy, 8, 0x8000, 100
  packet packet_out, 16, 0xa000, 200
  packet packet_back, 16, 0xc000, 200
  packet packet_fadt, 1, fetched, 300

  .set fetched, 0x600
segments:                   /* of the firmware's block move: two for it, from, to, two for it */
  .fill 2, 8, 0
source:
  .quad 0x000093000000ffff
  .quad 0x000093000000ffff | fetched << 16
  .fill 2, 8, 0

started:
  .asciz "boot sector runs\r\n"
passed:
  .asciz "BIOS PASS\r\n"
failed:
  .asciz "BIOS FAIL: INT 13h\r\n"
wrong:
  .asciz "BIOS FAIL: wrong data\r\n"
no_acpi:
  .asciz "BIOS FAIL: ACPI\r\n"
drive:
  .byte 0

  .org 510
  .word 0xaa55
