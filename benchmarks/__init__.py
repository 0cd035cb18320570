"""
What alloy_trio costs, beside a bare client in the same run: `python -m benchmarks`, or `nox -s bench`.

    server      a mock of a chat-completions server, in a process of its own
    bare        the yardstick: the same job by hand, with Trio, h11 and the json of the standard library
    ours        the same with alloy_trio
    wire        what is asked of both, over a socket
    inside      what the parts of a run cost, with a provider that is a script: no socket
    living      the same of what lives longer: agents, mailboxes, topics, supervisors
    far         the same of agents over a connection
    starts      processes that start: an import, the catalog, the terminal
    scenarios   the table of all
    place       what a scenario is told: which side, which server, how large
    yardstick   what is compared with where there is no other client
    worker      one scenario, one side, in a fresh process
    report      the table of figures, and how two files of them differ

Nothing of it is installed with the package, and no test depends on a figure.
"""
