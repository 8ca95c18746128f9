# Turns flattened network-config (version 2) into lines for the shell, each a verb and words of checked characters only:
# nic MAC [MTU] · dhcp · address A/P · route TO VIA · dns A · search NAME. NICs are found by MAC, never by name.

function is_address(text) { return text ~ /^[0-9a-fA-F.:]+$/ }
function is_network(text) { return text ~ /^[0-9a-fA-F.:]+\/[0-9]+$/ }

{
    sub(/^network\//, "", $1)
    parts = split($1, key, "/")
    if (parts < 3 || key[1] != "ethernets") next
    nic = key[2]
    if (!(nic in known)) { known[nic] = 1; order[++nics] = nic }
    what = key[3]
    if (what == "match" && key[4] == "macaddress" && $2 ~ /^[0-9a-fA-F:]+$/) mac[nic] = tolower($2)
    else if (what == "mtu" && $2 ~ /^[0-9]+$/) mtu[nic] = $2
    else if (what == "dhcp4" && $2 ~ /^(true|yes|on)$/) lines[nic] = lines[nic] "dhcp\n"
    else if (what == "addresses" && is_network($2)) lines[nic] = "address " $2 "\n" lines[nic]
    else if (what == "gateway4" && is_address($2)) lines[nic] = lines[nic] "route 0.0.0.0/0 " $2 "\n"
    else if (what == "gateway6" && is_address($2)) lines[nic] = lines[nic] "route ::/0 " $2 "\n"
    else if (what == "routes" && key[5] == "to") to[nic, key[4]] = $2
    else if (what == "routes" && key[5] == "via" && is_address($2)) { via[nic, key[4]] = $2; last[nic] = key[4] }
    else if (what == "nameservers" && key[4] == "addresses" && is_address($2)) lines[nic] = lines[nic] "dns " $2 "\n"
    else if (what == "nameservers" && key[4] == "search" && $2 ~ /^[A-Za-z0-9.-]+$/) lines[nic] = lines[nic] "search " $2 "\n"
}

END {
    for (n = 1; n <= nics; n++) {
        nic = order[n]
        if (!(nic in mac)) continue
        printf "nic %s %s\n%s", mac[nic], mtu[nic], lines[nic]
        for (r = 0; r <= last[nic]; r++) {
            target = to[nic, r]
            if (target == "default") target = via[nic, r] ~ /:/ ? "::/0" : "0.0.0.0/0"
            if (is_network(target) && via[nic, r] != "") printf "route %s %s\n", target, via[nic, r]
        }
    }
}
