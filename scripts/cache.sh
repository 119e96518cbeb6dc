# Sourced by scripts that fetch: the user's cache, which all clones share. What is in it is whole: it is made under a
# temporary name and renamed. The folders are named NAME_VERSION, as Debian's packages are.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ktstr-vmm
mkdir -p "$cache/bin"

# newest NAME: the folder of NAME's newest version, or nothing.
newest() { find "$cache" -maxdepth 1 -name "$1_*" | sort -V | tail -n 1; }

# can_install WHAT: reports whether packages can be had here, and says so where they can't.
can_install() {
	command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] && return
	echo "${0##*/}: missing: $1; run as root on Debian to get it, or install it" >&2
	return 1
}

# lock_cache: one script at a time changes the cache and the machine's packages. What is left of one that was killed
# goes.
lock_cache() {
	exec 9>"$cache/lock"
	flock 9
	rm -rf "$cache"/tmp.*
}

# download PACKAGE[/RELEASE] PATTERN...: unpacks the files that match into a temporary folder. Sets unpacked, which is
# the folder, and version. Options for apt-get are in apt.
apt=(-o APT::Sandbox::User=root)
download() {
	local deb tmp name=${1%/*}
	tmp=$(mktemp -d "$cache/tmp.XXXXXX")
	(cd "$tmp" && apt-get "${apt[@]}" download -qq "$1")
	deb=$(echo "$tmp/$name"_*.deb)
	version=$(basename "${deb%_*.deb}")
	version=${version#"${name}"_}
	unpacked=$tmp/unpacked
	mkdir "$unpacked"
	dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$unpacked" --wildcards "${@:2}"
}

# keep NAME: moves what was downloaded to its place.
keep() {
	rm -rf "${cache:?}/$1_$version"
	mv -T "$unpacked" "$cache/$1_$version"
	rm -rf "${unpacked%/*}"
}

# sources ARCH: makes apt, for what follows, one with a state of its own, for an architecture that may not be the
# machine's, and with the backports: the machine's own setup stays as it is.
sources() {
	local codename key=/usr/share/keyrings/debian-archive-keyring.gpg
	codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
	root=$(mktemp -d "$cache/tmp.XXXXXX")
	mkdir -p "$root"/{lists,cache/archives}/partial
	: >"$root/status"
	apt-get indextargets --format 'deb [signed-by='$key'] $(REPO_URI) $(CODENAME) main' |
		sed "p; s/ $codename main\$/ $codename-backports main/" | sort -u >"$root/list"
	apt=(-o APT::Sandbox::User=root -o "APT::Architecture=$1" -o "APT::Architectures::=$1"
		-o "Dir::Etc::sourcelist=$root/list" -o Dir::Etc::sourceparts=- -o "Dir::State=$root"
		-o "Dir::State::status=$root/status" -o "Dir::Cache=$root/cache")
	apt-get "${apt[@]}" update -qq
}
