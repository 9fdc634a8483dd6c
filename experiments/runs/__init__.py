"""Running a job in its folder (`driver`, `cohort`, `folder`, `metrics`), through stops, full disks and several processes."""
