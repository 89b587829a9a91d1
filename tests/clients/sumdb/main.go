// Reads a log with the packages of Go's checksum database, which know nothing of Portcullis.
//
//	sumdb log VKEY SEED DIR...       each log: its checkpoint, all tiles and entries, random proofs
//	sumdb consistent VKEY OLD NEW    whether the tree of NEW goes on from that of OLD
//	sumdb proof VKEY PROOF ENTRY     a tlog-proof of an entry
//
// Prints size and root of each, and ends with 1 and why where something does not hold.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	// The height of tiles that C2SP tlog-tiles asks for, and with it their width.
	height = 8
	width  = 1 << height
	// How many random proofs of each kind are made and checked.
	proofs = 64
)

func main() {
	if len(os.Args) < 4 {
		fail(errors.New("too few arguments"))
	}
	verifier, err := note.NewVerifier(os.Args[2])
	fail(err)
	known, rest := note.VerifierList(verifier), os.Args[3:]
	switch os.Args[1] {
	case "log":
		seed, err := strconv.ParseInt(rest[0], 10, 64)
		fail(err)
		for _, dir := range rest[1:] {
			tree, err := checkLog(known, verifier.Name(), dir, rand.New(rand.NewSource(seed)))
			if err != nil {
				err = fmt.Errorf("%s: %w", dir, err)
			}
			fail(err)
			fmt.Println(tree.N, tree.Hash)
		}
	case "consistent":
		old, err := openFile(known, verifier.Name(), rest[0])
		fail(err)
		tree, err := openFile(known, verifier.Name(), rest[1])
		fail(err)
		proof, err := tlog.ProveTree(tree.N, old.N, reader(tree, rest[1]))
		fail(err)
		fail(tlog.CheckTree(proof, tree.N, tree.Hash, old.N, old.Hash))
		fmt.Println(tree.N, tree.Hash)
	case "proof":
		text, err := os.ReadFile(rest[0])
		fail(err)
		entry, err := os.ReadFile(rest[1])
		fail(err)
		tree, err := checkProof(known, verifier.Name(), string(text), entry)
		fail(err)
		fmt.Println(tree.N, tree.Hash)
	default:
		fail(errors.New("log, consistent or proof"))
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// openCheckpoint verifies a signed note that is a checkpoint of this origin (C2SP tlog-checkpoint).
func openCheckpoint(known note.Verifiers, origin string, msg []byte) (tree tlog.Tree, err error) {
	opened, err := note.Open(msg, known)
	if err != nil {
		return tree, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != origin || lines[3] != "" {
		return tree, errors.New("not a checkpoint of this log")
	}
	if tree.N, err = strconv.ParseInt(lines[1], 10, 64); err != nil {
		return tree, err
	}
	tree.Hash, err = tlog.ParseHash(lines[2])
	return tree, err
}

func openFile(known note.Verifiers, origin, dir string) (tlog.Tree, error) {
	msg, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		return tlog.Tree{}, err
	}
	return openCheckpoint(known, origin, msg)
}

// tiles reads the tiles in a folder. Go's paths name the height, those of C2SP do not.
type tiles string

func (dir tiles) Height() int { return height }

func (dir tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var read [][]byte
	for _, tile := range wanted {
		path := "tile/" + strings.TrimPrefix(tile.Path(), fmt.Sprintf("tile/%d/", height))
		data, err := os.ReadFile(filepath.Join(string(dir), path))
		if err != nil {
			return nil, err
		}
		read = append(read, data)
	}
	return read, nil
}

func (dir tiles) SaveTiles([]tlog.Tile, [][]byte) {}

// reader gives hashes of a tree; each tile that it reads is checked against the tree's hash.
func reader(tree tlog.Tree, dir string) tlog.HashReader {
	return tlog.TileHashReader(tree, tiles(dir))
}

// checkLog verifies a whole log.
func checkLog(known note.Verifiers, origin, dir string, random *rand.Rand) (tree tlog.Tree, err error) {
	if tree, err = openFile(known, origin, dir); err != nil {
		return tree, err
	}
	inTiles := reader(tree, dir)

	// Every hash of the tree, made from the entries alone.
	var made hashes
	for bundle := int64(0); bundle*width < tree.N; bundle++ {
		entries, err := readBundle(dir, bundle, min(width, tree.N-bundle*width))
		if err != nil {
			return tree, err
		}
		var indexes []int64
		var leaves []tlog.Hash
		for at, entry := range entries {
			number := bundle*width + int64(at)
			more, err := tlog.StoredHashes(number, entry, made)
			if err != nil {
				return tree, err
			}
			made = append(made, more...)
			indexes, leaves = append(indexes, tlog.StoredHashIndex(0, number)), append(leaves, tlog.RecordHash(entry))
		}
		there, err := inTiles.ReadHashes(indexes)
		if err != nil {
			return tree, err
		}
		for at := range leaves {
			if there[at] != leaves[at] {
				return tree, fmt.Errorf("entry %d is another than its tile says", bundle*width+int64(at))
			}
		}
	}
	root, err := tlog.TreeHash(tree.N, made)
	if err != nil {
		return tree, err
	}
	if root != tree.Hash {
		return tree, errors.New("the entries make another tree than the checkpoint says")
	}
	// Tiles of every level, though proofs of the right edge alone need none of the others.
	for _, tile := range tlog.NewTiles(height, 0, tree.N) {
		data, err := tlog.ReadTileData(tile, made)
		if err != nil {
			return tree, err
		}
		there, err := tiles(dir).ReadTiles([]tlog.Tile{tile})
		if err != nil {
			return tree, err
		}
		if !bytes.Equal(there[0], data) {
			return tree, fmt.Errorf("%s is not what the entries make of it", tile.Path())
		}
	}
	for range proofs {
		number, old := random.Int63n(tree.N), 1+random.Int63n(tree.N)
		record, err := tlog.ProveRecord(tree.N, number, inTiles)
		if err != nil {
			return tree, err
		}
		if err := tlog.CheckRecord(record, tree.N, tree.Hash, number, made[tlog.StoredHashIndex(0, number)]); err != nil {
			return tree, err
		}
		before, err := tlog.TreeHash(old, made)
		if err != nil {
			return tree, err
		}
		growth, err := tlog.ProveTree(tree.N, old, inTiles)
		if err != nil {
			return tree, err
		}
		if err := tlog.CheckTree(growth, tree.N, tree.Hash, old, before); err != nil {
			return tree, err
		}
	}
	return tree, nil
}

// hashes holds all hashes of a tree in memory.
type hashes []tlog.Hash

func (all hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var read []tlog.Hash
	for _, index := range indexes {
		if index >= int64(len(all)) {
			return nil, fmt.Errorf("no hash %d", index)
		}
		read = append(read, all[index])
	}
	return read, nil
}

// readBundle gives the entries of a bundle, which must be as many as said.
func readBundle(dir string, number, count int64) ([][]byte, error) {
	path := strings.Replace(tlog.Tile{H: height, L: 0, N: number, W: int(count)}.Path(), fmt.Sprintf("tile/%d/0/", height), "tile/entries/", 1)
	data, err := os.ReadFile(filepath.Join(dir, path))
	if err != nil {
		return nil, err
	}
	var entries [][]byte
	for len(data) >= 2 {
		length := int(binary.BigEndian.Uint16(data))
		if len(data) < 2+length {
			break
		}
		entries, data = append(entries, data[2:2+length]), data[2+length:]
	}
	if len(data) > 0 || int64(len(entries)) != count {
		return nil, fmt.Errorf("%s: %d entries and %d bytes more", path, len(entries), len(data))
	}
	return entries, nil
}

// checkProof verifies a tlog-proof (C2SP tlog-proof@v1) of an entry.
func checkProof(known note.Verifiers, origin, text string, entry []byte) (tree tlog.Tree, err error) {
	head, checkpoint, found := strings.Cut(text, "\n\n")
	lines := strings.Split(head, "\n")
	if !found || len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" || !strings.HasPrefix(lines[1], "index ") {
		return tree, errors.New("not a tlog-proof")
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
	if err != nil {
		return tree, err
	}
	var path tlog.RecordProof
	for _, line := range lines[2:] {
		hash, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(hash) != tlog.HashSize {
			return tree, errors.New("not a hash in a tlog-proof")
		}
		path = append(path, tlog.Hash(hash))
	}
	if tree, err = openCheckpoint(known, origin, []byte(checkpoint)); err != nil {
		return tree, err
	}
	return tree, tlog.CheckRecord(path, tree.N, tree.Hash, index, tlog.RecordHash(entry))
}
