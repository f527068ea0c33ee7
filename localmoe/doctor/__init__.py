"""What `localmoe doctor` looks at: each check is a function from a view of the system to a result.

Nothing here imports the engine: a library that was built for another processor would end the
process. It is asked in a child.
"""
