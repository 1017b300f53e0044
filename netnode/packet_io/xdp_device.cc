#include "netnode/packet_io/xdp_device.h"

#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "lwproto/base/unique_fd.h"

namespace sanproxy::packet_io {

DeviceFacts facts_of(const std::string& name) {
  DeviceFacts out;
  const UniqueFd control(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strncpy(request.ifr_name, name.c_str(), IFNAMSIZ - 1);
  ethtool_drvinfo driver{};
  driver.cmd = ETHTOOL_GDRVINFO;
  request.ifr_data = reinterpret_cast<char*>(&driver);
  if (::ioctl(control.get(), SIOCETHTOOL, &request) == 0) {
    out.veth = std::strcmp(driver.driver, "veth") == 0;
  }
  ethtool_channels channels{};
  channels.cmd = ETHTOOL_GCHANNELS;
  request.ifr_data = reinterpret_cast<char*>(&channels);
  if (::ioctl(control.get(), SIOCETHTOOL, &request) == 0) {
    out.queues = std::max(1U, channels.combined_count + channels.rx_count);
  }
  return out;
}

}  // namespace sanproxy::packet_io
