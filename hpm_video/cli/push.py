"""``hpm-video push``."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "folder of an exported model, from hpm-video weights export RUN --to huggingface"
    parser.add_argument("folder", metavar="FOLDER", help=text)
    text = "OWNER/NAME on the Hugging Face Hub; created if it does not exist"
    parser.add_argument("repo", metavar="REPO", help=text)
    text = "make a new repository public (default: private)"
    parser.add_argument("--public", action="store_true", help=text)
    text = "list what would be uploaded, and what is missing, without network access"
    parser.add_argument("--dry-run", action="store_true", help=text)
    text = "message of the commit (default: %(default)s)"
    parser.add_argument("--message", default="Model exported by hpm-video", help=text)


def run(arguments: argparse.Namespace) -> int:
    from hpm_video.weights.export.push import check_repo, has_token, plan_upload, push

    repo, is_private = arguments.repo, not arguments.public
    check_repo(repo)
    upload = plan_upload(arguments.folder)
    for name, size in upload.files:
        print(f"{size / 1e6:12.3f} MB  {name}")
    who = "private" if is_private else "public"
    print(f"{sum(size for _, size in upload.files) / 1e6:12.3f} MB to {repo} ({who} if it is new)")
    for words in upload.missing:
        print(f"missing: {words}")
    if arguments.dry_run:
        print("dry run: nothing was uploaded")
        return 0
    if not has_token():
        raise ValueError(
            "nothing was uploaded, as there is no token: run `hf auth login` or set HF_TOKEN "
            "(--dry-run needs no token)"
        )
    print(push(upload, repo, is_private=is_private, message=arguments.message))
    return 0
