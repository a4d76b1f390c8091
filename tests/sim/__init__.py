"""The whole product in one process, on a virtual clock, from one seed.

Theory. Gateway, node agents, workers and clients are the product's own code. What is replaced is
the world around them: the network (memory, with faults), the clock, randomness, the scheduler's
choices, threads, processes and the disk's latency. All of it follows from one number, so whatever
goes wrong once goes wrong again: `python -m tests.sim --seed N`.

    seeded      clock, randomness, scheduling        network   connections with faults
    stage       hosts: killed, frozen, thawed        hosts     gateway, nodes, clients on a stage
    scenario    what a seed draws                    faulting  what goes wrong, and its repair
    functions   the bodies, and the truth about them workload  calls with known answers
    machines    what nodes have, and say they have   watching  what holds at every step
    checkers    the promises                         books     quotas and bills, on disk and not
    leaks       nothing is left behind               coverage  what must have been reached
    run         one seed from start to end

Source. FoundationDB's simulator (swizzle-clog, buggify), TigerBeetle's VOPR (safety, then
liveness), Antithesis ("sometimes" assertions); promises.md sections 3 and 5.
"""
