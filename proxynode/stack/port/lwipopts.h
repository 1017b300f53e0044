/* lwIP's options. Only TCP is taken from lwIP: IP in and out, netifs, timers, memory and the
 * demultiplexing of segments are ours (docs/tcp_stack.md). */
#ifndef SANPROXY_PORT_LWIPOPTS_H
#define SANPROXY_PORT_LWIPOPTS_H

#define NO_SYS 1
#define SYS_LIGHTWEIGHT_PROT 0
#define LWIP_TIMERS 0
#define LWIP_SOCKET 0
#define LWIP_NETCONN 0
#define LWIP_STATS 0
#define LWIP_RAW 0
#define LWIP_UDP 0
#define LWIP_DNS 0
#define LWIP_DHCP 0
#define LWIP_ICMP 0
#define LWIP_ARP 0
#define LWIP_ETHERNET 0
#define IP_FRAG 0
#define IP_REASSEMBLY 0

#define LWIP_IPV4 1
#define LWIP_IPV6 1
#define LWIP_IPV6_SCOPES 0
#define LWIP_IPV6_MLD 0
#define LWIP_IPV6_FRAG 0
#define LWIP_IPV6_REASS 0
#define LWIP_IPV6_AUTOCONFIG 0
#define LWIP_ICMP6 0
#define LWIP_ND6_QUEUEING 0
#define LWIP_ND6_TCP_REACHABILITY_HINTS 0
#define LWIP_ND6_ALLOW_RA_UPDATES 0

/* Memory: one bounded allocator (lwip_heap.h) behind everything. */
#define MEM_ALIGNMENT 8
#define MEM_SIZE 0x7fffffff /* makes mem_size_t 32 bits wide */
#define MEM_LIBC_MALLOC 1
#define MEMP_MEM_MALLOC 1
#define LWIP_SUPPORT_CUSTOM_PBUF 1
#define PBUF_LINK_HLEN 0
#define PBUF_POOL_SIZE 0
#define PBUF_POOL_FREE_OOSEQ 0

/* Every event of a connection comes through one function: no pointers in each connection. */
#define LWIP_EVENT_API 1
#define LWIP_CALLBACK_API 0
#define LWIP_TCP_PCB_NUM_EXT_ARGS 1 /* tells of every connection made and freed */
#define LWIP_NETIF_HWADDRHINT 1     /* tells the output which connection a packet is from */

/* One fast tick is 20 ms, a slow one 40 ms (lwIP doubles it). */
#define TCP_TMR_INTERVAL 20

#define LWIP_TCP 1
#define TCP_SYNMAXRTX 7 /* the last one is not sent (be_patient() in stack_timers.cc) */
#define TCP_MSS 8960    /* the most that a peer's MSS option can ask for; MTU 9000 */
#define TCP_CALCULATE_EFF_SEND_MSS 1
#define LWIP_WND_SCALE 1
#define TCP_RCV_SCALE 7
#define TCP_WND (4 * 1024 * 1024)     /* a ceiling: each connection gets its own at run time */
#define TCP_SND_BUF (4 * 1024 * 1024) /* likewise */
#define TCP_SNDLOWAT 32768            /* unused; its default overflows 16 bits */
#define TCP_SND_QUEUELEN 16384
#define TCP_SNDQUEUELOWAT 8192
#define TCP_OVERSIZE                                                          \
  256 /* a flood of tiny writes shares blocks; write_segment() keeps it sound \
       */
#define LWIP_NETIF_TX_SINGLE_PBUF 0
#define LWIP_TCP_TIMESTAMPS 1
#define LWIP_TCP_SACK_OUT 1
#define LWIP_TCP_KEEPALIVE 1
#define TCP_LISTEN_BACKLOG 0
#define SO_REUSE 0

/* Out-of-order segments pin receive slots: few when the pool is low. */
#define TCP_QUEUE_OOSEQ 1
#define TCP_OOSEQ_PBUFS_LIMIT(pcb) sanproxy_lwip_ooseq_pbufs_max(pcb)

/* Checksums are completed by the driver or the kernel, and checked before lwIP sees a segment. */
#define CHECKSUM_GEN_IP 0
#define CHECKSUM_GEN_TCP 0
#define CHECKSUM_CHECK_IP 0
#define CHECKSUM_CHECK_TCP 0
#define LWIP_CHECKSUM_ON_COPY 0

#define LWIP_HOOK_FILENAME "lwip_hooks.h"

#include <stdint.h>
struct tcp_pcb;
#ifdef __cplusplus
extern "C"
#endif
    uint16_t
    sanproxy_lwip_ooseq_pbufs_max(const struct tcp_pcb* pcb);

#endif
