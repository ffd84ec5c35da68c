"""The benches as commands: ``add_arguments(parser)``, ``measure(arguments) -> Report`` in each
module, which imports nothing slow before it measures."""
