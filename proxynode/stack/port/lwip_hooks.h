/* What lwIP's TCP asks the stack at run time. */
#ifndef SANPROXY_PORT_LWIP_HOOKS_H
#define SANPROXY_PORT_LWIP_HOOKS_H

#include "lwip/ip_addr.h"

#ifdef __cplusplus
extern "C" {
#endif

struct tcp_pcb;

u32_t sanproxy_lwip_isn(const ip_addr_t* local_ip, u16_t local_port, const ip_addr_t* remote_ip,
                        u16_t remote_port);
#define LWIP_HOOK_TCP_ISN(local_ip, local_port, remote_ip, remote_port) \
  sanproxy_lwip_isn(local_ip, local_port, remote_ip, remote_port)

#ifdef __cplusplus
}
#endif

#endif
