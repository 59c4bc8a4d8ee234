"""What the simulator's short names mean, for people who read them for the first time."""

# One sentence per `Timeline.bound_by`.
BOUNDS = {
    "hbm": "Copies between HBM and VMEM take most of the time; their bytes are the limit.",
    "dma_issue": "Copies take most of the time; their number is the limit, not their bytes.",
    "dma_latency": "The kernel waits for the latency of copies while the DMA engines are idle.",
    "mxu": "The kernel waits for the matrix units or their results.",
    "vector": "Vector instructions fill the bundles.",
    "scalar": "Scalar bundles (addresses, loops, copy descriptors) take most of the time.",
    "sync": "The kernel waits for its own semaphores.",
    "launch": "Launch overhead takes most of the time.",
}
# What each cause of `cycles_by_owner` is, in the order in which charts stack them.
CAUSES = {
    "issue": "bundles with vector, matrix, load or store work",
    "scalar": "bundles with scalar work only, and branch shadows",
    "mxu_wait": "waits for the matrix units",
    "dma_wait_read": "waits for copies from HBM",
    "dma_wait_write": "waits for copies to HBM",
    "prologue": "waits for scalar operands at the start",
    "sync": "waits for the kernel's own flags",
    "launch": "before the first bundle",
}
# What is said of a candidate that was left behind; other reasons are statuses of an evaluation.
# What is said of a study's row, in the order of a bar.
VERDICTS = ("tuned", "heuristic", "running", "no row", "not begun")
STATES = {
    "answered": "has a time",
    "infeasible": "cannot exist",
    "bounded": "its lower bound is above the best time",
    "not asked": "was not tried",
    "failed": "has no time: it failed",
}
