/* A plugin of qemu-user: writes how many instructions ran before each getppid() of an aarch64 program. The
   functions of QEMU's plugin interface, version 1, are declared here, because Debian's packages have no header for it.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*call)(plugin_id, struct qemu_plugin_tb*));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* block);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb* block, int add, void* sum, uint64_t by);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, void (*call)(plugin_id, unsigned, int64_t, uint64_t,
                                                                            uint64_t, uint64_t, uint64_t, uint64_t,
                                                                            uint64_t, uint64_t, uint64_t));

int qemu_plugin_version = 1;

enum { GETPPID = 173 };
static uint64_t instructions;

static void translated(plugin_id id, struct qemu_plugin_tb* block) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(block, 0, &instructions, qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                   uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (number == GETPPID) fprintf(stderr, "%" PRIu64 "\n", instructions);
}

int qemu_plugin_install(plugin_id id, const void* info, int count, char** values) {
  (void)info, (void)count, (void)values;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  return 0;
}
