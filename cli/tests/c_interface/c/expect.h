/* What the programs here have in common: checks that say what is wrong and where, and an end to waiting. */
#ifndef EXPECT_H
#define EXPECT_H

#include <hetmem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPECT(holds)                                                                                                  \
    do {                                                                                                               \
        if (!(holds)) {                                                                                                \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #holds);                                        \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* The call must succeed. */
#define OK(call) expect_ok((call), #call, __LINE__)

/* The call must be refused with this code, and a message in which this text is. */
#define REFUSED(call, code, text) expect_refused((call), (code), (text), #call, __LINE__)

static inline void expect_ok(hetmem_error *error, const char *call, int line)
{
    if (error != NULL) {
        fprintf(stderr, "line %d: %s: %s\n", line, call, hetmem_error_message(error));
        exit(1);
    }
}

static inline void expect_refused(hetmem_error *error, uint32_t code, const char *text, const char *call, int line)
{
    if (hetmem_error_code(error) != code || strstr(hetmem_error_message(error), text) == NULL) {
        fprintf(stderr, "line %d: %s: code %u, %s\n", line, call, (unsigned)hetmem_error_code(error),
                hetmem_error_message(error));
        exit(1);
    }
    hetmem_error_free(error);
}

/* Who waits this long waits for ever: the alarm ends the process. */
static inline void bounded(void)
{
    alarm(240);
}

/* A runtime with a private device 0 and a coherent device 1, of 64 MiB each. */
static inline hetmem_runtime *two_devices(void)
{
    hetmem_config *config;
    hetmem_runtime *runtime;
    OK(hetmem_config_new(&config));
    OK(hetmem_config_add_device(config, "private:emulated,size=64M"));
    OK(hetmem_config_add_device(config, "coherent:emulated,size=64M,name=near"));
    OK(hetmem_config_allow_sigbus(config));
    OK(hetmem_runtime_new(config, &runtime));
    hetmem_config_free(config);
    return runtime;
}

#endif
