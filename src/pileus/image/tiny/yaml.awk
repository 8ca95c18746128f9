# Flattens the plain YAML of cloud data into "path<TAB>value" lines: block mappings and lists, one-line flow lists,
# quoted and plain scalars. What it does not understand (block text, flow mappings) becomes "!ignored<TAB>path".

function pop(column, is_item) {
    while (depth > 0 && (level[depth] > column || (level[depth] == column && !(is_item && kind[depth] == "key")))) depth--
}

function push(column, name, what) {
    depth++
    level[depth] = column
    kind[depth] = what
    path[depth] = (depth > 1 ? path[depth - 1] "/" : "") name
    items[depth] = 0
}

# scalar(TEXT): what the scalar at the start of TEXT says; the length of its source is left in consumed.
function scalar(text, at, c, out) {
    c = substr(text, 1, 1)
    if (c != "\"" && c != "'") {
        sub(/[ \t]+#.*$/, "", text)
        sub(/[ \t]+$/, "", text)
        consumed = length(text)
        return text
    }
    out = ""
    for (at = 2; at <= length(text); at++) {
        if (c == "\"" && substr(text, at, 1) == "\\") { at++; out = out substr(text, at, 1); continue }
        if (substr(text, at, 1) == c) {
            if (c == "'" && substr(text, at + 1, 1) == "'") { at++; out = out "'"; continue }
            break
        }
        out = out substr(text, at, 1)
    }
    consumed = at
    return out
}

function flow_list(text, where, n, piece, out) {
    text = substr(text, 2)
    n = 0
    while (1) {
        sub(/^[ \t,]+/, "", text)
        if (text == "" || text ~ /^\]/) return
        if (text ~ /^["']/) { out = scalar(text); text = substr(text, consumed + 1) }
        else { match(text, /^[^],]*/); out = scalar(substr(text, 1, RLENGTH)); text = substr(text, RLENGTH + 1) }
        print where "/" n++ "\t" out
    }
}

function emit(text, where) {
    if (text ~ /^[|>]/) { skipping = level[depth] + 1; print "!ignored\t" where }
    else if (text ~ /^\[/) flow_list(text, where)
    else if (text ~ /^[{&*!]/) { if (text !~ /^\{ *\}/) print "!ignored\t" where }
    else print where "\t" scalar(text)
}

function line(text, column, name) {
    if (text ~ /^-([ \t]|$)/) {
        pop(column, 1)
        name = items[depth]++
        push(column, name, "item")
        match(text, /^-[ \t]*/)
        if (length(text) > RLENGTH) line(substr(text, RLENGTH + 1), column + RLENGTH)
    } else if (match(text, /^("[^"]*"|'[^']*'|[A-Za-z0-9_.-]+)[ ]*:([ \t]+|$)/)) {
        pop(column, 0)
        name = substr(text, 1, RLENGTH)
        text = substr(text, RLENGTH + 1)
        sub(/[ ]*:[ \t]*$/, "", name)
        gsub(/["']/, "", name)
        push(column, name, "key")
        if (text != "" && text !~ /^#/) emit(text, path[depth])
    } else emit(text, path[depth])
}

{
    sub(/\r$/, "")
    if ($0 ~ /^[ \t]*(#.*)?$/ || $0 ~ /^(---|\.\.\.)/) next
    match($0, /^ */)
    if (skipping && RLENGTH >= skipping) next
    skipping = 0
    line(substr($0, RLENGTH + 1), RLENGTH)
}
