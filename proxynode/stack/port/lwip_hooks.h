/* What lwIP's TCP asks the stack at run time. */
#ifndef SANPROXY_PORT_LWIP_HOOKS_H
#define SANPROXY_PORT_LWIP_HOOKS_H

#include "lwip/ip_addr.h"

#ifdef __cplusplus
extern "C" {
#endif

struct pbuf;
struct tcp_pcb;

u32_t sanproxy_lwip_isn(const ip_addr_t* local_ip, u16_t local_port, const ip_addr_t* remote_ip,
                        u16_t remote_port);
#define LWIP_HOOK_TCP_ISN(local_ip, local_port, remote_ip, remote_port) \
  sanproxy_lwip_isn(local_ip, local_port, remote_ip, remote_port)

/* RFC 7323 3.2: once agreed, timestamps are on every segment. lwIP leaves them out of window
 * probes, keepalives and resets, which it makes without options. */
#define LWIP_HOOK_TCP_OUT_TCPOPT_LENGTH(pcb, length)                                              \
  ((length) == 0 && (pcb) != NULL && (pcb)->state != LISTEN && ((pcb)->flags & TF_TIMESTAMP) != 0 \
       ? LWIP_TCP_OPT_LEN_TS_OUT                                                                  \
       : (length))
u32_t* sanproxy_lwip_add_timestamp(const struct pbuf* packet, const struct tcp_pcb* pcb,
                                   u32_t* options);
#define LWIP_HOOK_TCP_OUT_ADD_TCPOPTS(p, header, pcb, options)                        \
  ((options) == (u32_t*)(void*)((header) + 1) && TCPH_HDRLEN_BYTES(header) > TCP_HLEN \
       ? sanproxy_lwip_add_timestamp(p, pcb, options)                                 \
       : (options))

#ifdef __cplusplus
}
#endif

#endif
