"""What a host measures of an SR domain while its chains are steered: links, ways, and the chains' own sockets."""
