#!/bin/bash
# Fetches one commit, or all, with the job's token, which stays in a file that goes with the job.
set -euo pipefail

url="$GITHUB_SERVER_URL/$IN_REPOSITORY"
folder="$GITHUB_WORKSPACE/$IN_PATH"
mkdir -p "$folder"
cd "$folder"
git init -q .
git remote add origin "$url" 2>/dev/null || git remote set-url origin "$url"

# Written by the shell itself: what git is told as an argument, every account of the node could read.
printf '[http "%s/"]\n\textraheader = "Authorization: basic %s"\n' "$GITHUB_SERVER_URL" \
    "$(printf 'x-access-token:%s' "$IN_TOKEN" | base64 -w0)" >>.git/config
if [ "$IN_PERSIST" != true ]; then
    trap 'git config --local --unset-all "http.$GITHUB_SERVER_URL/.extraheader" || true' EXIT
fi

wanted=$IN_REF
if [ -z "$wanted" ]; then
    if [ "$IN_REPOSITORY" = "$GITHUB_REPOSITORY" ]; then wanted=$GITHUB_SHA; else wanted=HEAD; fi
fi
depth=()
if [ "$IN_DEPTH" != 0 ]; then depth=(--depth "$IN_DEPTH" --no-tags); fi
if [ "$IN_DEPTH" = 0 ]; then
    git fetch -q --tags origin '+refs/heads/*:refs/remotes/origin/*'
fi
git fetch -q "${depth[@]}" origin "$wanted"
commit=$(git rev-parse 'FETCH_HEAD^{commit}')

branch=""
if [ -z "$IN_REF" ] && [ "${GITHUB_REF:-}" != "${GITHUB_REF#refs/heads/}" ]; then branch=${GITHUB_REF#refs/heads/}; fi
if [ -n "$IN_REF" ] && git ls-remote --exit-code --heads origin "refs/heads/$IN_REF" >/dev/null; then branch=$IN_REF; fi
if [ -n "$branch" ]; then
    git update-ref "refs/remotes/origin/$branch" "$commit"
    git checkout -q --force -B "$branch" "$commit"
else
    git checkout -q --force --detach "$commit"
fi
if [ "$IN_CLEAN" = true ]; then git clean -ffdqx; fi

if [ "$IN_LFS" = true ]; then
    git lfs install --local >/dev/null
    git lfs pull
fi
case $IN_SUBMODULES in
true) git submodule update -q --init ;;
recursive) git submodule update -q --init --recursive ;;
esac

echo "commit=$commit" >>"$GITHUB_OUTPUT"
echo "$IN_REPOSITORY at $commit"
