"""Parses SLURM's time limits, and formats durations for people."""

_FORMS = "minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS or infinite"
UNLIMITED = 0xFFFFFFFF  # minutes: SLURM's own number for no limit


def minutes_of(text: str, *, name: str = "time") -> int:
    """A time limit in whole minutes, rounded up; UNLIMITED for ``infinite`` and ``unlimited``.

    Raises ValueError if it has none of SLURM's forms or is 0. ``name``: setting in the message.
    """
    if text.lower() in ("infinite", "unlimited"):
        return UNLIMITED
    days, dash, clock = text.partition("-") if "-" in text else ("0", "", text)
    parts = clock.split(":")
    are_numbers = all(part.isascii() and part.isdigit() for part in (days, *parts))
    if not are_numbers or len(parts) > 3:
        raise ValueError(f"{name} ({text}) must be {_FORMS}")
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:  # one number is minutes, two are minutes:seconds
        hours, minutes, seconds = [0, *numbers, 0][:3] if len(numbers) < 3 else numbers
    if any(number >= 60 for number in numbers[1:]) or (dash and hours >= 24):
        raise ValueError(
            f"{name} ({text}) must be {_FORMS}, with hours up to 23 and minutes up to 59"
        )
    total_s = (int(days) * 24 + hours) * 3600 + minutes * 60 + seconds
    if total_s == 0:
        raise ValueError(f"{name} ({text}) must be longer than zero")
    return -(-total_s // 60)


def duration(seconds: float) -> str:
    """A duration for people: 0:42, 3:07:05 or 12d 03h."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02d}h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
