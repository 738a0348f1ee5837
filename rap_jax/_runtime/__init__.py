"""What all packages share and no user imports: devices, processes, files, text.

arrays        checks of an array before anything is computed; the width of sums
devices       how many devices a CPU is taken for
topology      devices of a TPU slice that is not there, and what its chips can do
hlo           what a compiled program does: cycles, bytes, collectives
mesh          the mesh, where arrays lie on it, microbatches
processes     several processes that compute as one
functions     captured arrays, traces and fingerprints of a user's function
integrity     digests, checksums, atomic writes, npz files; errors for damaged files
progress      a progress bar, or lines
interrupt     Ctrl-C and SIGTERM as a flag
text, figure  numbers, tables and pictures of the reports
environment   versions and devices
"""
