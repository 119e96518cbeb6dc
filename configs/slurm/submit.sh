#!/bin/sh
# Runs a suite on a Slurm cluster, and ends with its verdict: submit.sh SUITE FOLDER [FLAG OF ktstr-vmm suite…]
#
# FOLDER is one that all nodes share; the whole report will be in FOLDER/JOB/merged. SHARDS says how many parts the
# suite has: 4 if it is not set. What else your cluster wants to know (SBATCH_PARTITION, SBATCH_ACCOUNT…) is for
# sbatch's environment, or for the lines #SBATCH of the two jobs.
set -eu

usage="usage: $0 SUITE FOLDER [FLAG OF ktstr-vmm suite...]"
suite=${1:?$usage}
folder=${2:?$usage}
shift 2
jobs=$(dirname "$0")

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
shards=$(sbatch --parsable --array="1-${SHARDS:-4}" --output="$folder/%A-shard-%a.log" \
	"$jobs/shards.sbatch" "$suite" "$folder" "$@")
shards=${shards%%;*} # a name of the cluster may follow
echo "shards: job $shards, reports: $folder/$shards"

sbatch --quiet --wait --dependency="afterany:$shards" --output="$folder/$shards-merge.log" \
	"$jobs/merge.sbatch" "$folder/$shards" &
merge=$!
# The first signal ends the shards, of which there is a report all the same.
trap 'trap - INT TERM; scancel "$shards"' INT TERM
status=0
wait "$merge" || status=$?
while kill -0 "$merge" 2>/dev/null; do
	status=0
	wait "$merge" || status=$?
done
cat "$folder/$shards-merge.log"
exit $status
