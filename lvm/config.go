package lvm

import (
	"fmt"
	"strings"
)

// configText is the lvm.conf that every command reads. The devices are named on
// the command line, which has more weight than any filter.
//
// use_aio makes every command 40 ms faster and works only here, not by --config.
// Without udev, which has to answer otherwise, device nodes are made by lvm
// itself.
func configText(lockDir string, udev bool) string {
	yes := 0
	if udev {
		yes = 1
	}
	var b strings.Builder
	b.WriteString("# written by tidemark for its own commands, and overwritten at every start\n")
	b.WriteString(`devices {
  dir = "/dev"
  scan = [ "/dev" ]
  obtain_device_list_from_udev = 0
  external_device_info_source = "none"
  use_devicesfile = 0
  hints = "none"
  md_component_detection = 0
  multipath_component_detection = 0
  fw_raid_component_detection = 0
}
`)
	fmt.Fprintf(&b, `global {
  use_lvmpolld = 0
  use_aio = 0
  locking_dir = "%s"
  wait_for_locks = 1
}
activation {
  udev_sync = %d
  udev_rules = %d
  monitoring = 0
}
backup {
  backup = 0
  archive = 0
}
log {
  syslog = 0
}
`, lockDir, yes, yes)
	return b.String()
}
