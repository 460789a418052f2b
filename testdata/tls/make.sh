#!/bin/sh
# Makes the certificates that the tests of TLS use. They open nothing: their keys stand beside them in the repository.
set -eu
cd "$(dirname "$0")"
rm -f ./*.pem

authority() { # name
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 \
        -subj "/CN=$1 of the tests" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -keyout "$1-key.pem" -out "$1.pem" 2>/dev/null
}

certificate() { # name, authority, subject alternative names, days from now that it begins, days that it lasts
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$1" \
        -keyout "$1-key.pem" -out request.pem 2>/dev/null
    printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$3" > extensions.txt
    mkdir -p scratch && : > scratch/index.txt && echo "$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')" > scratch/serial
    openssl ca -batch -notext -config /dev/stdin -cert "$2.pem" -keyfile "$2-key.pem" -in request.pem -out "$1.pem" \
        -startdate "$4" -enddate "$5" -extfile extensions.txt 2>/dev/null <<CONFIG
[ca]
default_ca = own
[own]
dir = scratch
database = scratch/index.txt
serial = scratch/serial
new_certs_dir = scratch
default_md = sha256
policy = any
[any]
commonName = supplied
CONFIG
    rm -rf request.pem extensions.txt scratch
}

here='IP:127.0.0.1,IP:::1,DNS:localhost'
authority ca
authority other-ca
certificate member ca "$here" 20200101000000Z 21200101000000Z
certificate stranger other-ca "$here" 20200101000000Z 21200101000000Z
certificate elsewhere ca 'DNS:example.com' 20200101000000Z 21200101000000Z
certificate expired ca "$here" 20200101000000Z 20200102000000Z
rm -f ca-key.pem other-ca-key.pem
