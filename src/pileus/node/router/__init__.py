"""The role ``router``: addresses, DHCP, DNS, NAT, firewall, balancers, VPN, redundancy, from one document.

A document is two levels of JSON: section -> key -> entry. A section that is missing is empty. Sections and entries:

``node``        ``self``: ``{"hostname": str}``
``links``       ``guest`` / ``public``: ``{"mac": str}``; NICs are found by MAC.
``addresses``   IPv4 address: ``{"link": "guest"|"public", "prefix": int, "gateway": str (default route, optional),
                "shared": bool (held by the active one of a pair only)}``
``networks``    network id: ``{"range": CIDR, "gateway": str, "domain": str, "dns": [str] (given to guests instead of
                the router itself; empty: the router)}``
``resolvers``   upstream name server address: ``{}``
``hosts``       MAC: ``{"network": id, "address": str, "names": [str]}`` (DHCP lease and DNS names, also reverse)
``nat``         ``source``: ``{"address": str}`` (source NAT of everything that leaves by the public link)
``forwards``    id: ``{"address": str, "protocol": "tcp"|"udp", "port_first": int, "port_last": int, "to_address": str,
                "to_port": int (of port_first; a range keeps its order), "sources": [CIDR] (empty: any)}``
``balancers``   id: ``{"address": str, "port": int, "protocol": "tcp"|"http", "algorithm":
                "round-robin"|"least-connections"|"source", "members": {id: {"address": str, "port": int}},
                "check": {"protocol": "tcp"|"http", "path": str, "interval_ms": int, "fall": int, "rise": int},
                "sources": [CIDR]}``
``firewall``    order key (compared as text): ``{"direction": "ingress"|"egress", "action": "accept"|"drop", "network":
                id or "" (any), "protocol": "any"|"tcp"|"udp"|"icmp", "remotes": [CIDR] (outside; empty: any), "locals":
                [CIDR] (inside; empty: any), "port_first": int, "port_last": int (destination; 0, 0: any)}``
``tunnels``     id: ``{"interface": str (wg0...), "private_key": str, "port": int, "address": CIDR or "", "peers":
                {public key: {"allowed": [CIDR], "endpoint": "address:port" or "", "keepalive_s": int}}}`` (WireGuard)
``stretches``   id: ``{"network": id, "range": CIDR, "tunnel": tunnel id, "vni": int, "local": str, "remote": str}``
                (VXLAN in a tunnel, bridged with the guest link; only frames of ``range``, no DHCP)
``redundancy``  ``pair``: ``{"router_id": int 1-255, "priority": int 1-254, "own": CIDR (link-local, on the guest
                link), "peer": str, "yields": bool (hands over: it will be replaced)}`` (VRRP, unicast; connections are
                synchronised)

Default deny: from the public link only answers, forwards, balancers, tunnels' ports and ICMP echo to the router get
in. ``firewall`` rules are judged in order before that, the first that fits decides; ``ingress`` rules see the guests'
addresses (after translation). Egress is allowed unless a rule drops it.
"""
