"""``hpm-video data list|check|transcode|toy``, one module each."""

import argparse

from hpm_video.cli import data_check, data_list, data_toy, data_transcode

COMMANDS = {"list": data_list, "check": data_check, "transcode": data_transcode, "toy": data_toy}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    jobs = parser.add_subparsers(dest="data_job", required=True, metavar="|".join(COMMANDS))
    for name, command in COMMANDS.items():
        of_command = jobs.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(of_command)


def run(arguments: argparse.Namespace) -> int:
    return COMMANDS[arguments.data_job].run(arguments)
