/* lwIP's port header: byte order, allocation, randomness and assertions of this platform. */
#ifndef SANPROXY_PORT_ARCH_CC_H
#define SANPROXY_PORT_ARCH_CC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LWIP_NO_CTYPE_H 1
#define LWIP_NO_UNISTD_H 1
#define LWIP_TIMEVAL_PRIVATE 0
#define SSIZE_MAX INT_MAX

#define lwip_htons(x) __builtin_bswap16((uint16_t)(x))
#define lwip_htonl(x) __builtin_bswap32((uint32_t)(x))

void* sanproxy_lwip_malloc(size_t bytes);
void* sanproxy_lwip_calloc(size_t count, size_t bytes);
void sanproxy_lwip_free(void* block);
#define mem_clib_malloc sanproxy_lwip_malloc
#define mem_clib_calloc sanproxy_lwip_calloc
#define mem_clib_free sanproxy_lwip_free

/* Assertions are for our own bugs and cost time: off in release builds. */
void sanproxy_lwip_assert_failed(const char* message, const char* file, int line);
#ifdef NDEBUG
#define LWIP_NOASSERT 1
#endif
#define LWIP_PLATFORM_ASSERT(message) sanproxy_lwip_assert_failed(message, __FILE__, __LINE__)
#define LWIP_PLATFORM_DIAG(message) \
  do {                              \
  } while (0)

uint32_t sanproxy_lwip_random(void);
#define LWIP_RAND() sanproxy_lwip_random()

#ifdef __cplusplus
}
#endif

#endif
